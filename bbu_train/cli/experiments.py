"""What an experiment's file ties to a choice, and how it falls with that choice.

The values below a config group in an experiment's file (`augmentation: {top_bottom: 0.5}`) suit the choice that the
experiment makes in that group, or the default choice if it makes none. Where a config has another choice there, they
are left out, and `about.left_out` says so. A group without a default choice, such as `search`, ties nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.runs.settings import LEFT_OUT
from bbu_train.runtime.nested import leaves

EXPERIMENT = "experiment/"


class ExperimentLoader(ConfigLoaderImpl):
    """Hydra's loader, without the values of experiments whose choice was replaced."""

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        """Compose the files of `defaults`, which have the final choices; `repo` keeps them for this config alone."""
        taken = [(str(each.parent), str(each.config_path)) for each in defaults]
        usual = next((_choices(repo, str(each.config_path)) for each in defaults if each.primary), {})
        for path in dict.fromkeys(str(each.config_path) for each in defaults):
            if path.startswith(EXPERIMENT) and (loaded := repo.load_config(path)) is not None:
                _leave_out(loaded, usual | _own_choices(repo, path), taken)
        return super()._compose_config_from_defaults_list(defaults, repo)


def _choices(repo: IConfigRepository, path: str) -> dict[str, str]:
    """Return the choices that the defaults list of a file makes."""
    loaded = repo.load_config(path)
    listed: Sequence[Any] = (loaded.defaults_list if loaded is not None else None) or []
    return {
        str(each.group).removeprefix("/"): each.value
        for each in listed
        if isinstance(each, GroupDefault) and isinstance(each.value, str)
    }


def _own_choices(repo: IConfigRepository, path: str) -> dict[str, str]:
    """Return the choices of an experiment, those of the experiments that it begins with included."""
    loaded = repo.load_config(path)
    listed: Sequence[Any] = (loaded.defaults_list if loaded is not None else None) or []
    own: dict[str, str] = {}
    for each in listed:
        if isinstance(each, GroupDefault) or each.is_self() or each.path is None:
            continue
        folder = path.rpartition("/")[0]
        own |= _own_choices(repo, each.path[1:] if each.path.startswith("/") else f"{folder}/{each.path}")
    return own | _choices(repo, path)


def _leave_out(experiment: ConfigResult, own: Mapping[str, str], taken: Sequence[tuple[str, str]]) -> None:
    """Take the values of replaced choices out of the file of an experiment, and note them in `about.left_out`.

    `own` are the choices that its values suit. `taken` has the files that the config is composed of, each after the one
    that names it: one may begin with another of its group, as optimizer=muon does with adamw, which is not chosen then.
    """
    config = experiment.config
    if not isinstance(config, DictConfig) or (experiment.header or {}).get("package") != "_global_":
        return
    for group, choice in own.items():
        key = group.replace("/", ".")
        values = OmegaConf.select(config, key)
        chosen = (path for parent, path in taken if not parent.startswith(f"{group}/"))
        if not isinstance(values, DictConfig) or f"{group}/{choice}" in chosen:
            continue
        raw = OmegaConf.to_container(values, resolve=False)
        names = " ".join(f"{name}={value}".replace("${", "\\${") for name, value in leaves(raw, key))
        with open_dict(config):
            owner, _, last = key.rpartition(".")
            del (OmegaConf.select(config, owner) if owner else config)[last]
            OmegaConf.update(config, f"{LEFT_OUT}.{last}", f"{names} (for {group}={choice})", force_add=True)
