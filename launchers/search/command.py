"""What the command of a search asks for: a space, what is the same in all of it, and how trials are drawn.

Nothing here imports Optuna before a search is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from bbu_train.cli import overrides
from bbu_train.errors import InputError
from bbu_train.metrics import direction
from bbu_train.runs import config_keys, identity
from launchers.cells import Cell, compose, firsts, is_of_search, with_sweep_of_config


@dataclass(frozen=True)
class SearchCommand:
    """The command of a search: Hydra's options, its overrides less those of the search itself, and these, composed."""

    options: tuple[str, ...]
    overrides: tuple[Override, ...]
    settings: DictConfig
    folder: Path
    loader: ConfigLoaderImpl

    @cached_property
    def searched(self) -> dict[str, Override]:
        """The overrides that span the space, by key."""
        return {override.key_or_group: override for override in self.overrides if override.is_sweep_override()}

    @cached_property
    def space(self) -> dict[str, Any]:
        """The distribution of each key."""
        if not self.searched:
            raise InputError("A search needs keys to vary, such as loss.weights.giou=interval(1,5).")
        return {key: self.distribution(key, its.get_value_string()) for key, its in self.searched.items()}

    def distribution(self, key: str, text: str) -> Any:
        from launchers.search import space

        (override,) = config_keys.parse([f"{key}={text}"], self.loader)  # which lists what a glob stands for
        return space.distribution(override)

    @property
    def fixed(self) -> list[str]:
        """What is the same in every trial and can change its result."""
        others = [override for override in self.overrides if not override.is_sweep_override()]
        neutral = [override for override in others if identity.is_neutral(override.key_or_group.replace("/", "."))]
        return sorted(str(override.input_line) for override in others if override not in neutral)

    def cell(self, values: Mapping[str, Any]) -> Cell:
        """The cell at one point of the space."""
        words = [
            f"{override.get_key_element()}={values[override.key_or_group]}"
            if override.is_sweep_override()
            else str(override.input_line)
            for override in self.overrides
        ]
        (cell,) = compose([*self.options, *words], self.folder, tuple(self.searched))
        return cell


def read(arguments: Sequence[str], folder: Path) -> SearchCommand | None:
    """The search that a command asks for; None if it asks for all cells. `arguments` have passed `overrides.check`."""
    flags = get_args_parser().parse_args(list(arguments))
    loader = overrides.config_loader(folder, flags.config_dir)
    name = flags.config_name or overrides.CONFIG_NAME
    given = with_sweep_of_config(config_keys.parse(flags.overrides, loader), loader, name)
    cfg = loader.load_configuration(name, firsts(given), RunMode.MULTIRUN)
    if cfg.get("search") is None:
        return None
    named = {"--config-dir": flags.config_dir, "--config-name": flags.config_name}
    options = [word for option, value in named.items() if value is not None for word in (option, value)]
    own = tuple(override for override in given if not is_of_search(override.key_or_group))
    return SearchCommand(("-m", *options), own, _checked(cfg), folder, loader)


def _checked(cfg: DictConfig) -> DictConfig:
    """The settings of the search, with the direction that its metric has."""
    settings = cfg.search
    problems = [
        f"search.{key}={settings[key]}: {key} is a whole number, {least} or more."
        for key, least in (("num_trials", 1), ("num_parallel", 1), ("seed", 0))
        if not isinstance(settings[key], int) or settings[key] < least
    ]
    if settings.mode not in ("max", "min", None):
        problems.append(f"search.mode={settings.mode}: mode is max or min.")
    if not isinstance(settings.poll_seconds, int | float) or not settings.poll_seconds > 0:
        problems.append(f"search.poll_seconds={settings.poll_seconds}: poll_seconds is a number above 0.")
    if str(settings.metric).startswith("eval/") and cfg.eval_every is None:
        problems.append(f"search.metric={settings.metric} is of evaluations, and with eval_every=null there are none.")
    config_keys.refuse(problems)
    settings.mode = settings.mode or direction.usual_mode(str(settings.metric))
    return settings


def made_study(command: SearchCommand) -> Any:
    """The study before its first trial."""
    from launchers.search.study import Study

    its = command.settings
    sampler, pruner = (instantiate(its[part], _convert_="all") for part in ("sampler", "pruner"))
    return Study(command.space, sampler, pruner, its.seed, its.mode)
