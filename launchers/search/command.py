"""The command of a search: its space, the overrides that all trials share, and how trials are drawn.

Reading a command that asks for no search does not import Optuna.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bbu_train.cli import overrides
from bbu_train.errors import InputError
from bbu_train.metrics import direction
from bbu_train.runs import config_keys, identity
from bbu_train.runs.length import EPOCHS, STEPS, WARMUP, choose_length
from launchers.cells import Cell, add_config_sweep, compose, first_values, is_search_key

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from launchers.search.study import Study


@dataclass(frozen=True)
class SearchCommand:
    """Hydra's options, the overrides of the runs, the composed config, and conf/ with its loader.

    `config.steps` is null until the steps of given epochs are counted.
    """

    options: tuple[str, ...]
    overrides: tuple[Override, ...]
    config: DictConfig
    folder: Path
    loader: ConfigLoaderImpl

    @property
    def settings(self) -> DictConfig:
        """The settings of the search."""
        return self.config.search

    @cached_property
    def searched(self) -> dict[str, Override]:
        """The overrides that span the space, by key."""
        return {override.key_or_group: override for override in self.overrides if override.is_sweep_override()}

    @cached_property
    def space(self) -> dict[str, BaseDistribution]:
        """The distribution of each searched key."""
        if not self.searched:
            raise InputError("A search needs keys to vary, such as loss.weights.giou=interval(1,5).")
        return {key: self.distribution(key, override.get_value_string()) for key, override in self.searched.items()}

    def distribution(self, key: str, text: str) -> BaseDistribution:
        """Return the distribution that the override `key=text` means."""
        from launchers.search.space import to_distribution

        (override,) = config_keys.parse([f"{key}={text}"], self.loader)  # the loader expands a glob
        return to_distribution(override)

    @property
    def fixed(self) -> list[str]:
        """The overrides that are the same in every trial and can change its result."""
        others = [override for override in self.overrides if not override.is_sweep_override()]
        neutral = [override for override in others if identity.is_neutral(override.key_or_group.replace("/", "."))]
        return sorted(str(override.input_line) for override in others if override not in neutral)

    def cell(self, values: Mapping[str, Any]) -> Cell:
        """Return the cell at one point of the space."""
        texts = [
            f"{override.get_key_element()}={values[override.key_or_group]}"
            if override.is_sweep_override()
            else str(override.input_line)
            for override in self.overrides
        ]
        (cell,) = compose([*self.options, *texts], self.folder, tuple(self.searched))
        return cell


def read_search_command(arguments: Sequence[str], folder: Path) -> SearchCommand | None:
    """Return the search that a command asks for, or None if it asks for all cells.

    `arguments` have passed `overrides.check`.
    """
    flags = get_args_parser().parse_args(list(arguments))
    loader = overrides.config_loader(folder, flags.config_dir)
    name = flags.config_name or overrides.CONFIG_NAME
    given = add_config_sweep(config_keys.parse(flags.overrides, loader), loader, name)
    cfg = loader.load_configuration(name, first_values(given), RunMode.MULTIRUN)
    if cfg.get("search") is None:
        return None
    hydra_options = {"--config-dir": flags.config_dir, "--config-name": flags.config_name}
    options = [word for option, value in hydra_options.items() if value is not None for word in (option, value)]
    of_runs = tuple(override for override in given if not is_search_key(override.key_or_group))
    choose_length(cfg, [override.key_or_group for override in given])
    _check_settings(cfg)
    _check_warmup(cfg, given)
    return SearchCommand(("-m", *options), of_runs, cfg, folder, loader)


def _check_warmup(cfg: DictConfig, given: Sequence[Override]) -> None:
    """Raise InputError if trials of different length may differ in their warm-up too, because it does not fit."""
    lengths = [each for each in given if each.key_or_group in (STEPS, EPOCHS) and each.is_sweep_override()]
    warmup = OmegaConf.select(cfg, WARMUP) if "num_steps" in (cfg.get("schedule") or {}) else None
    if not lengths or not warmup or WARMUP in [each.key_or_group for each in given]:
        return
    steps = [each for each in lengths if each.key_or_group == STEPS and not each.is_interval_sweep()]
    if not all(int(value) >= warmup for each in steps for value in each.sweep_string_iterator()) or lengths != steps:
        raise InputError(
            f"The search draws {lengths[0].key_or_group}, and {WARMUP}={warmup} may not fit into every trial: it would "
            f"be shortened in some of them alone. Give {WARMUP}=..."
        )


def _check_settings(cfg: DictConfig) -> None:
    """Check the settings of the search, and fill in `mode` from the metric."""
    settings = cfg.search
    problems = [
        f"search.{key}={settings[key]}: {key} is a whole number, {minimum} or more."
        for key, minimum in (("num_trials", 1), ("num_parallel", 1), ("seed", 0))
        if not isinstance(settings[key], int) or settings[key] < minimum
    ]
    if settings.mode not in ("max", "min", None):
        problems.append(f"search.mode={settings.mode}: mode is max or min.")
    if not isinstance(settings.poll_seconds, int | float) or not settings.poll_seconds > 0:
        problems.append(f"search.poll_seconds={settings.poll_seconds}: poll_seconds is a number above 0.")
    if str(settings.metric).startswith("eval/") and cfg.eval_every is None:
        problems.append(
            f"search.metric={settings.metric} is measured in evaluations, but eval_every=null turns them off. "
            "Set eval_every."
        )
    config_keys.refuse(problems)
    settings.mode = settings.mode or direction.usual_mode(str(settings.metric))


def create_study(command: SearchCommand) -> Study:
    """Return the search's study without any trial. It prunes none while the steps of given epochs are not counted."""
    from optuna.pruners import NopPruner

    from launchers.search.study import Study

    settings = command.settings
    sampler = instantiate(settings.sampler, _convert_="all")
    is_counted = command.config.steps is not None
    pruner = instantiate(settings.pruner, _convert_="all") if is_counted else NopPruner()
    return Study(command.space, sampler, pruner, settings.seed, settings.mode)
