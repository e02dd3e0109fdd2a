"""From the command of a sweep to its cells, each with the config that it takes. Nothing here imports torch.

Hydra's own sweeper composes every cell anew, which takes 28 s for 200 of them. Here each combination of config groups
is composed once, and the values of swept keys are set on copies.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from bbu_train.cli import overrides
from bbu_train.errors import InputError, all_problems
from bbu_train.runs import config_keys, identity, resume


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the command's overrides with one value each, the choices of groups, and the config."""

    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    cfg: DictConfig

    @cached_property
    def values(self) -> dict[str, Any]:
        """The config, resolved."""
        values = OmegaConf.to_container(self.cfg, resolve=True)
        assert isinstance(values, dict)
        return {str(key): value for key, value in values.items()}


def compose(arguments: Sequence[str], folder: Path, searched: Sequence[str] = ()) -> list[Cell]:
    """All cells, in the order in which Hydra would run them; `arguments` have passed `overrides.check`.

    `searched` are keys whose value here is one of many that a search tries, so they too tell its cells apart.
    Raises one InputError that names every cell that does not compose, that is there twice, or that belongs elsewhere.
    """
    flags = get_args_parser().parse_args(list(arguments))
    loader = overrides.config_loader(folder, flags.config_dir)
    name = flags.config_name or overrides.CONFIG_NAME
    given = with_sweep_of_config(config_keys.parse(flags.overrides, loader), loader, name)
    axes = [_values(override) for override in given]
    set_later = [_is_set_on_copies(override, loader) for override in given]
    swept = [*searched, *(override.key_or_group for override in given if override.is_sweep_override())]

    @cache
    def composed(chosen: tuple[str, ...]) -> tuple[DictConfig, Mapping[str, str]]:
        cfg = loader.load_configuration(name, list(chosen), RunMode.MULTIRUN)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg["hydra"]
            cfg.pop("search", None)  # an experiment may choose it, but it is no part of the runs
        kept = [group for group, choice in choices.items() if isinstance(choice, str) and not is_of_search(group)]
        return cfg, {group: choices[group] for group in kept}

    cells, problems = [], []
    for texts in itertools.product(*axes):
        try:
            cfg, choices = composed(tuple(text for text, later in zip(texts, set_later, strict=True) if not later))
            cfg = _changed(cfg, [text for text, later in zip(texts, set_later, strict=True) if later])
            cells.append(Cell(texts, choices, _settled(cfg, choices, texts, swept)))
        except InputError as error:
            problems.append(f"{' '.join(texts)}: {error}")
    problems += _shared_names(cells)
    if problems:
        raise all_problems("The sweep", problems, "Nothing was started.")
    return cells


def is_of_search(key: str) -> bool:
    """Whether a key or a config group says how cells are searched for, so that it belongs to none of them."""
    return key.replace("/", ".").split(".")[0] == "search"


def with_sweep_of_config(given: list[Override], loader: ConfigLoaderImpl, name: str) -> list[Override]:
    """The overrides, after those that the config itself sweeps over (hydra.sweeper.params), as in Hydra's sweeper.

    Where nobody has named a launcher, it is `here`.
    """
    config = loader.load_configuration(name, firsts(given), RunMode.MULTIRUN)
    params = config.hydra.sweeper.get("params") or {}
    keys = {override.key_or_group for override in given}
    added = [f"{key}={value}" for key, value in params.items() if str(key).lstrip("+~") not in keys]
    if config.hydra.runtime.choices["hydra/launcher"] == "basic":
        given = [override for override in given if override.key_or_group != "hydra/launcher"]
        added.append("hydra/launcher=here")
    return [*config_keys.parse(added, loader), *given]


def firsts(given: Sequence[Override]) -> list[str]:
    """The overrides with the first of their values each."""
    return [
        f"{override.get_key_element()}={override.value().start}"
        if override.is_interval_sweep()
        else _values(override)[0]
        for override in given
    ]


def _values(override: Override) -> list[str]:
    """The override with each of its values, one after the other."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not (override.is_discrete_sweep() or override.is_range_sweep()):
        raise InputError(
            f"{override.input_line}: an interval has no values of its own to try. List them, 1,2,3, or let search=tpe "
            "draw from it."
        )
    if not (values := [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]):
        raise InputError(f"{override.input_line}: there is no value in it.")
    return values


def _is_set_on_copies(override: Override, loader: ConfigLoaderImpl) -> bool:
    swept = override.is_sweep_override() and override.type is OverrideType.CHANGE
    return swept and not overrides.is_group(override, loader) and not override.key_or_group.startswith("hydra.")


def _changed(cfg: DictConfig, texts: Sequence[str]) -> DictConfig:
    changed = copy.deepcopy(cfg)
    for override in config_keys.parse(texts):
        OmegaConf.update(changed, override.key_or_group, override.value(), merge=True)
    return changed


def _settled(cfg: DictConfig, choices: Mapping[str, Any], texts: Sequence[str], swept: Sequence[str]) -> DictConfig:
    """The config of the run, with places that hold from any folder, as a job may start in another."""
    if cfg.resume is not None:
        raise InputError(f"resume={cfg.resume} goes on with one run, here; a launcher starts the runs of a sweep.")
    cfg = resume.resolve_run(cfg, identity.experiment_name(choices.get("experiment")), texts, True, swept)
    cfg.outputs = str(Path(cfg.outputs).expanduser().absolute())
    return cfg


def _shared_names(cells: Sequence[Cell]) -> Iterator[str]:
    """Cells that would be one run, and cells of another sweep's ledger."""
    first: dict[str, Cell] = {}
    for cell in cells:
        its = first.setdefault(cell.cfg.run, cell)
        if its is not cell:
            yield f"{' '.join(cell.overrides)}: the same run ({cell.cfg.run}) as {' '.join(its.overrides)}"
        if (cell.cfg.outputs, cell.cfg.sweep) != (cells[0].cfg.outputs, cells[0].cfg.sweep):
            yield f"{' '.join(cell.overrides)}: one command starts one sweep, here {cells[0].cfg.sweep}"
