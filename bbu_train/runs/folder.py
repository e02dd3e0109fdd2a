"""A run's folder: `config.yaml`, which marks it as a run, and `environment.json`, where and with what it was made."""

import difflib
import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bbu_train.errors import InputError
from bbu_train.runs.config_keys import leaves
from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.runtime.git import git_commit

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
OTHER_CODE = re.compile(r"missing (a|\d+) required |unexpected keyword argument|Error loading|Error locating target")


def load(folder: str | Path) -> DictConfig:
    """The config of the run in `folder`. It names the place where the folder lies now, not where it was made."""
    folder = Path(folder).expanduser().resolve()
    if not (folder / CONFIG).is_file():
        raise InputError(_no_run(folder))
    try:
        cfg = OmegaConf.load(folder / CONFIG)
        with open_dict(cfg):
            if folder.parent.name == cfg.sweep:
                cfg.run, cfg.outputs = folder.name, str(folder.parent.parent)
            else:  # moved out of its family: the names stay, and the MLflow store is not looked for beside it
                cfg.folder = str(folder)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"{folder / CONFIG} is not the config of a run: {error}") from error
    OmegaConf.set_struct(cfg, True)
    return cfg


def create(folder: str | Path, cfg: DictConfig) -> None:
    """Make a run's folder, with `environment.json` and, last and atomically, `config.yaml`.

    References between keys are kept, or a moved folder would still name its old place; what comes from outside, such
    as `${oc.env:HOME}`, is resolved, or it could change. Only one rank may call this.
    """
    folder = Path(folder)
    stored = f"# The config of this run. To go on with it: python -m bbu_train resume=<this folder>\n{as_yaml(cfg)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / ENVIRONMENT, json.dumps(_environment(), indent=2, ensure_ascii=False) + "\n")
        atomic_write(folder / CONFIG, stored)
    except OSError as error:
        raise InputError(
            f"The run's folder {folder} cannot be written: {error}. Give another with outputs=."
        ) from error


def choices(folder: str | Path) -> dict[str, str]:
    """The config groups' choices with which the run in `folder` was made; none where nobody wrote them down."""
    return _made(folder).get("choices", {})


@contextmanager
def built_by_this_code(folder: str | Path) -> Iterator[None]:
    """Raise InputError if a part of the run in `folder` takes other arguments here than where the run was made.

    What fails in a run of this very commit is a defect, and stays as it is.
    """
    try:
        yield
    except (InstantiationException, TypeError) as error:
        cause = error.__cause__ or error
        commit = _made(folder).get("git_commit")
        is_ours = commit is not None and commit == git_commit()
        if is_ours or isinstance(cause, InputError) or not OTHER_CODE.search(str(cause)):
            raise
        which = f"of commit {commit}" if commit else "that it was made with"
        what = str(cause).splitlines()[0].rstrip(":")
        raise InputError(f"The run in {folder} was made by other code: {what}. Take the bbu_train {which}.") from error


def _made(folder: str | Path) -> dict[str, Any]:
    """`environment.json` of the run in `folder`; empty where nobody wrote it."""
    path = Path(folder).expanduser() / ENVIRONMENT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def as_yaml(cfg: DictConfig) -> str:
    """References between keys are kept; what comes from outside is resolved."""
    kept = cfg.copy()
    for key, raw in leaves(OmegaConf.to_container(cfg, resolve=False)):
        if isinstance(raw, str) and re.search(r"\$\{[\w.]+:", raw):
            OmegaConf.update(kept, key, OmegaConf.select(cfg, key))
    return OmegaConf.to_yaml(kept)


def _environment() -> dict[str, Any]:
    """What the config does not say of how a run was made."""
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    known = [distribution.metadata for distribution in importlib.metadata.distributions()]  # parsed at each access
    packages = {metadata["Name"]: metadata["Version"] for metadata in known if metadata["Name"]}
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
        "packages": dict(sorted(packages.items(), key=lambda package: package[0].lower())),
    }


def _no_run(folder: Path) -> str:
    """What lies at `folder` instead of a run, and which runs are near."""
    if (parent := next((above for above in folder.parents if (above / CONFIG).is_file()), None)) is not None:
        return f"{folder} is a part of a run. Did you mean {parent}?"
    if inside := _runs_in(folder):
        return f"{folder} is a folder of runs. Name one of them: {', '.join(inside[-10:])}."
    beside = _runs_in(folder.parent)
    near = difflib.get_close_matches(folder.name, beside, n=1)
    hint = f" Did you mean {folder.parent / near[0]}?" if near else ""
    hint = f" Runs beside it: {', '.join(beside[-10:])}." if beside and not near else hint
    if not folder.exists():
        return f"There is no run in {folder}: no such folder.{hint}"
    held = sorted(path.name for path in folder.iterdir())[:10] if folder.is_dir() else ["it is a file"]
    return f"There is no run in {folder}: no {CONFIG}, only {', '.join(held) or 'an empty folder'}.{hint}"


def _runs_in(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
