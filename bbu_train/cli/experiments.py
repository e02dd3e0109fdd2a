"""What an experiment's file ties to a choice, and how it falls with that choice.

The values below a config group in an experiment's file (`augmentation: {top_bottom: 0.5}`) suit the choice that the
experiment makes in that group, or the default choice if it makes none. Where a config has another choice there, they
are left out, and `about.left_out` says so. Below a group without a default choice, such as `search`, values suit every
choice, and are left out where there is none. Values below `always` in the file stay with every choice: they are what
the experiment is about, and a choice that lacks their keys is refused (`overrides.check`).
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.runs.settings import LEFT_OUT
from bbu_train.runtime.nested import leaves

EXPERIMENT = "experiment/"
ALWAYS = "always"
"""The key of an experiment's file below which the values that stay with every choice lie."""
_KEYS = {"hydra/launcher": "launchers"}
"""The key of a group's values, where it is not the group's name."""


class ExperimentLoader(ConfigLoaderImpl):
    """Hydra's loader, without the values of experiments whose choice was replaced, and with those below ALWAYS."""

    def __init__(self, search_path: ConfigSearchPath) -> None:
        super().__init__(search_path)
        self._options: dict[tuple[Any, ...], list[str]] = {}

    def get_group_options(self, *arguments: Any, **options: Any) -> list[str]:
        """Return what Hydra does. It takes 20 ms, and each override of a command asks several times."""
        key = (*arguments, *sorted(options.items()))
        if key not in self._options:
            self._options[key] = super().get_group_options(*arguments, **options)
        return self._options[key]

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        """Compose the files of `defaults`, which have the final choices; `repo` keeps them for this config alone."""
        taken = [(str(each.parent), str(each.config_path)) for each in defaults]
        usual = next((_choices(repo, str(each.config_path)) for each in defaults if each.primary), {})
        for path in dict.fromkeys(str(each.config_path) for each in defaults):
            if path.startswith(EXPERIMENT) and (loaded := repo.load_config(path)) is not None:
                own = usual | _own_choices(repo, path)
                nested = [_own_choices(repo, f"{group}/{choice}") for group, choice in own.items() if choice]
                _leave_out(loaded, {**dict(chain(*map(dict.items, nested))), **own}, taken)
        return super()._compose_config_from_defaults_list(defaults, repo)


def _choices(repo: IConfigRepository, path: str) -> dict[str, str | None]:
    """Return the choices that the defaults list of a file makes, None for a group without a default choice."""
    return {
        _absolute(path, str(each.group)): each.value
        for each in _listed(repo, path)
        if isinstance(each, GroupDefault) and (each.value is None or isinstance(each.value, str))
    }


def _own_choices(repo: IConfigRepository, path: str) -> dict[str, str | None]:
    """Return the choices of a file, those of the files of its group that it begins with included."""
    own: dict[str, str | None] = {}
    for each in _listed(repo, path):
        if not (isinstance(each, GroupDefault) or each.is_self() or each.path is None):
            own |= _own_choices(repo, _absolute(path, each.path))
    return own | _choices(repo, path)


def _listed(repo: IConfigRepository, path: str) -> Sequence[Any]:
    """Return the defaults list of a file."""
    loaded = repo.load_config(path)
    return (loaded.defaults_list if loaded is not None else None) or []


def _absolute(path: str, name: str) -> str:
    """Return the path of a group or a file that the defaults list of `path` names."""
    folder = path.rpartition("/")[0]
    return name[1:] if name.startswith("/") else f"{folder}/{name}" if folder else name


def _leave_out(experiment: ConfigResult, own: Mapping[str, str | None], taken: Sequence[tuple[str, str]]) -> None:
    """Take the values of replaced choices out of the file of an experiment, and note them in `about.left_out`.

    `own` are the choices that its values suit. `taken` has the files that the config is composed of, each after the one
    that names it: one may begin with another of its group, as optimizer=muon does with adamw, which is not chosen then.
    Values below ALWAYS take their places then.
    """
    config = experiment.config
    if not isinstance(config, DictConfig) or (experiment.header or {}).get("package") != "_global_":
        return
    with open_dict(config):
        always = config.pop(ALWAYS, None)
        for group, choice in own.items():
            key = _KEYS.get(group, group.replace("/", "."))
            values = OmegaConf.select(config, key)
            chosen = [path for parent, path in taken if not parent.startswith(f"{group}/")]
            if isinstance(values, DictConfig) and not _is_taken(group, choice, chosen):
                text = _as_text(values, key)
                owner, _, last = key.rpartition(".")
                del (OmegaConf.select(config, owner) if owner else config)[last]
                suited = f"{group}={choice}" if choice else f"a choice of {group}"
                OmegaConf.update(config, f"{LEFT_OUT}.{last}", f"{text} (for {suited})", force_add=True)
        if isinstance(always, DictConfig):
            config.merge_with(always)


def _is_taken(group: str, choice: str | None, chosen: Sequence[str]) -> bool:
    """Whether a file of the group is chosen: that of `choice`, or any if the group has no default choice."""
    return any(path == f"{group}/{choice}" if choice else path.rpartition("/")[0] == group for path in chosen)


def _as_text(values: DictConfig, key: str) -> str:
    raw = OmegaConf.to_container(values, resolve=False)
    return " ".join(f"{name}={value}".replace("${", "\\${") for name, value in leaves(raw, key))
