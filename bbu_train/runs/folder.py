"""The folder of a run: `config.yaml`, which marks it as a run; `environment.json`, which says what made it; and the
record of the data that it reads."""

import difflib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bbu_train.errors import InputError
from bbu_train.runs import data_fingerprint
from bbu_train.runs.identity import DATA
from bbu_train.runs.names import folder_name
from bbu_train.runtime.atomic_write import atomic_write, make_folder
from bbu_train.runtime.git import git_commit
from bbu_train.runtime.nested import leaves

CONFIG = "config.yaml"
RESUMED = "resumed from step"
"""What train.log says of a run each time that it is resumed."""
ENVIRONMENT = "environment.json"
WRONG_ARGUMENTS = re.compile(
    r"missing (a|\d+) required |unexpected keyword argument|Error loading|Error locating target"
)
"""What Python and Hydra say if a config does not fit the code that reads it."""


def load(folder: str | Path, name: str = CONFIG) -> DictConfig:
    """Return the config of the run in `folder`, a file of this `name`, located where the folder lies now."""
    folder = on_disk(folder).resolve()
    if not (folder / name).is_file():
        raise InputError(_describe_missing_run(folder))
    try:
        cfg = OmegaConf.load(folder / name)
        if not isinstance(cfg, DictConfig):
            raise InputError(f"{folder / name} is not the config of a run: expected a mapping.")
        if not _is_of_a_run(cfg):
            raise InputError(f"{folder / name} is not the config of a run. Expected the folder that a run has written.")
        with open_dict(cfg):
            if folder.parent.name == cfg.sweep:
                cfg.run, cfg.outputs = folder.name, str(folder.parent.parent)
            else:
                # The folder was moved out of its sweep: keep the names `sweep` and `run`, and keep `outputs`, so that
                # no MLflow store is searched beside the folder.
                cfg.folder = str(folder)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"{folder / name} is not the config of a run: {error}") from error
    OmegaConf.set_struct(cfg, True)
    return cfg


def on_disk(folder: str | Path) -> Path:
    """Return the folder of a run whose last part may be the run's whole name, longer than a folder's name can be."""
    folder = Path(folder).expanduser()
    return folder if os.path.exists(folder) else folder.parent / folder_name(folder.name)  # noqa: PTH110


def create(folder: str | Path, cfg: DictConfig, facts: Mapping[str, Any]) -> None:
    """Make the folder of a run: `environment.json` and the record of its data, and last `config.yaml`, which makes it
    a run.

    `facts` goes into `environment.json`: under "data" what the run reads, in numbers; under "settings" what the program
    took for each setting that may be "auto"; under "start" the sections of the first screen. Only one rank may call
    this. Raises InputError if the folder cannot be written.
    """
    folder = Path(folder)
    config = f"# The config of this run. To resume it: python -m bbu_train resume=<this folder>\n{as_yaml(cfg)}"
    try:
        make_folder(folder)
        _write_environment(folder, {**_environment(), **facts})
        if OmegaConf.select(cfg, DATA) is not None:
            data_fingerprint.keep_record(cfg, folder)
        atomic_write(folder / CONFIG, config)
    except OSError as error:
        raise InputError(
            f"The run's folder {folder} cannot be written: {error}. Give another with outputs=."
        ) from error


def resume_command(folder: str | Path, overrides: Sequence[str]) -> str:
    """Return the command that resumes a run, with those `overrides` that config.yaml does not hold."""
    words = " ".join(map(shlex.quote, [f"resume={folder}", *overrides]))
    num_ranks, on_this_node = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE")
    if num_ranks == "1" or num_ranks != on_this_node:
        return f"python -m bbu_train {words}"
    return f"torchrun --nproc-per-node {num_ranks} -m bbu_train {words}"


def add_to_environment(folder: str | Path, step: int, facts: Mapping[str, Any]) -> None:
    """Note in `environment.json` that the run is resumed from `step`, with what, and by which command.

    `facts` has the entries of `create` that may differ from those of the beginning, which stay. Only one rank may call
    this.
    """
    environment = read_environment(folder)
    again = {"step": step, "git_commit": git_commit(), "command": sys.argv, **facts}
    environment["resumed"] = [*environment.get("resumed", []), again]
    _write_environment(Path(folder), environment)


def _write_environment(folder: Path, environment: Mapping[str, Any]) -> None:
    atomic_write(folder / ENVIRONMENT, json.dumps(environment, indent=2, ensure_ascii=False) + "\n")


def choices(folder: str | Path) -> dict[str, str]:
    """Return the choice of each config group that the run in `folder` was made with; empty if it is not recorded."""
    return read_environment(folder).get("choices", {})


@contextmanager
def built_by_this_code(folder: str | Path) -> Iterator[None]:
    """Turn an error about wrong constructor arguments into an InputError that names the commit which made the run.

    If this is the same commit, the error is a bug and is raised unchanged.
    """
    try:
        yield
    except (InstantiationException, TypeError) as error:
        cause = error.__cause__ or error
        commit = read_environment(folder).get("git_commit")
        is_same_code = commit is not None and commit == git_commit()
        if is_same_code or isinstance(cause, InputError) or not WRONG_ARGUMENTS.search(str(cause)):
            raise
        which = f"of commit {commit}" if commit else "that it was made with"
        what = str(cause).splitlines()[0].rstrip(":")
        raise InputError(f"The run in {folder} was made by other code: {what}. Take the bbu_train {which}.") from error


def classes(folder: str | Path) -> set[str]:
    """Return the classes of the data that the run in `folder` reads; empty if they are not recorded."""
    splits = read_environment(folder).get("data", {}).get("splits", {})
    return {name for split in splits.values() for name in split["num_objects_by_class"]}


def read_environment(folder: str | Path) -> dict[str, Any]:
    """Return `environment.json` of the run in `folder`; empty if there is none. Raises InputError if it is damaged."""
    path = Path(folder).expanduser() / ENVIRONMENT
    if not path.is_file():
        return {}
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). Restore it from a copy.") from error
    if not isinstance(environment, dict):
        raise InputError(f"{path} is damaged: expected a mapping. Restore it from a copy.")
    return environment


def as_yaml(cfg: DictConfig) -> str:
    """Write the config as YAML. References between keys stay, so that the folder can be moved.

    What comes from outside, such as `${oc.env:HOME}`, is resolved, because it may change.
    """
    resolved = cfg.copy()
    for key, raw in leaves(OmegaConf.to_container(cfg, resolve=False)):
        if isinstance(raw, str) and re.search(r"\$\{[\w.]+:", raw):
            OmegaConf.update(resolved, key, OmegaConf.select(cfg, key))
    return OmegaConf.to_yaml(resolved)


def _environment() -> dict[str, Any]:
    """Return what the config does not say about how a run is made."""
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return {
        "git_commit": git_commit(),
        "command": sys.argv,
        "choices": {
            group: choice
            for group, choice in chosen.items()
            if isinstance(choice, str) and group != "experiment" and not group.startswith("hydra/")
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
    }


@cache
def _packages() -> dict[str, str]:
    """Return the version of each installed package. Reading them takes a quarter of a second."""
    metadata = [distribution.metadata for distribution in importlib.metadata.distributions()]  # parsed at each access
    packages = {fields["Name"]: fields["Version"] for fields in metadata if fields["Name"]}
    return dict(sorted(packages.items(), key=lambda package: package[0].lower()))


def _describe_missing_run(folder: Path) -> str:
    """Say what lies at `folder` instead of a run, and which runs are near."""
    configs = (above / CONFIG for above in folder.parents)
    if (config := next((each for each in configs if each.is_file() and _can_be_a_run(each)), None)) is not None:
        return f"{folder} is a part of a run. Did you mean {config.parent}?"
    if runs := _run_names(folder):
        return f"{folder} is a folder of runs. Name one of them: {', '.join(runs[-10:])}."
    beside = _run_names(folder.parent)
    near = difflib.get_close_matches(folder.name, beside, n=1)
    hint = f" Did you mean {folder.parent / near[0]}?" if near else ""
    hint = f" Runs beside it: {', '.join(beside[-10:])}." if beside and not near else hint
    if not folder.exists():
        return f"There is no run in {folder}: no such folder.{hint}"
    names = sorted(path.name for path in folder.iterdir())[:10] if folder.is_dir() else ["it is a file"]
    return f"There is no run in {folder}: no {CONFIG}, only {', '.join(names) or 'an empty folder'}.{hint}"


def _run_names(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if _can_be_a_run(path))


def _is_of_a_run(cfg: Mapping[Any, Any]) -> bool:
    """Whether a config has the keys that locate a run, and is not one that Hydra composes: that one has `defaults`."""
    return "defaults" not in cfg and all(key in cfg for key in ("sweep", "run", "outputs", "folder"))


def _can_be_a_run(path: Path) -> bool:
    """Whether a file is the config of a run, or a damaged one."""
    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return True
    return isinstance(cfg, dict) and _is_of_a_run(cfg)
