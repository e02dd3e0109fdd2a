"""From a sweep's command to its cells, each with the config of its run. Nothing here imports torch.

Hydra's own sweeper composes every cell anew, which takes 28 s for 200 cells. Here each combination of config groups is
composed once, and the values of swept keys are set on copies.
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
from bbu_train.errors import InputError, all_problems, listed
from bbu_train.runs import config_keys, identity, resume
from bbu_train.runs.length import FULL_WARMUP, WARMUP
from bbu_train.runs.settings import LEFT_OUT
from bbu_train.runtime.wording import count_of


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the command's overrides with one value each, the chosen config groups, and the config."""

    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    cfg: DictConfig

    @cached_property
    def values(self) -> dict[str, Any]:
        """The config, resolved."""
        values = OmegaConf.to_container(self.cfg, resolve=True)
        assert isinstance(values, dict)
        return {str(key): value for key, value in values.items()}


def compose(arguments: Sequence[str], folder: Path, searched_keys: Sequence[str] = ()) -> list[Cell]:
    """Return all cells in Hydra's order. `arguments` have passed `overrides.check`.

    `searched_keys` have one value here but vary over the trials of a search, so they are part of a run's title.
    Raises one InputError that names every cell that does not compose, is there twice, or belongs to another sweep.
    """
    flags = get_args_parser().parse_args(list(arguments))
    loader = overrides.config_loader(folder, flags.config_dir)
    name = flags.config_name or overrides.CONFIG_NAME
    given = add_config_sweep(config_keys.parse(flags.overrides, loader), loader, name)
    axes = [_list_values(override) for override in given]
    set_on_copies = [_is_set_on_copies(override, loader) for override in given]
    swept_keys = [*searched_keys, *(override.key_or_group for override in given if override.is_sweep_override())]

    @cache
    def compose_groups(texts: tuple[str, ...]) -> tuple[DictConfig, Mapping[str, str]]:
        cfg = loader.load_configuration(name, list(texts), RunMode.MULTIRUN)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        assert isinstance(choices, dict)
        with open_dict(cfg):
            del cfg["hydra"]
            cfg.pop("search", None)  # an experiment may choose a search, which is no part of its runs
        groups = [str(group) for group, choice in choices.items() if isinstance(choice, str)]
        return cfg, {group: choices[group] for group in groups if not is_search_key(group)}

    cells, problems, known_data = [], [], {}
    for texts in itertools.product(*axes):
        composed = tuple(text for text, is_set in zip(texts, set_on_copies, strict=True) if not is_set)
        changes = [text for text, is_set in zip(texts, set_on_copies, strict=True) if is_set]
        try:
            cfg, choices = compose_groups(composed)
            cfg = _resolve_run(_set_values(cfg, changes), choices, texts, swept_keys, known_data)
            cells.append(Cell(texts, choices, cfg))
        except InputError as error:
            problems.append(f"{' '.join(texts)}: {error}")
    problems += [*_find_conflicts(cells), *warmup_conflicts(cells)]
    if problems:
        raise all_problems("The sweep", problems, "Nothing was started.")
    return cells


def is_search_key(key: str) -> bool:
    """Whether a key or a config group configures the search, and therefore no run."""
    return key.replace("/", ".").split(".")[0] == "search"


def add_config_sweep(given: list[Override], loader: ConfigLoaderImpl, name: str) -> list[Override]:
    """Return the overrides with the config's own sweep (hydra.sweeper.params) before them, as in Hydra's sweeper.

    The command wins over the config. If neither names a launcher, it is `here`.
    """
    config = loader.load_configuration(name, first_values(given), RunMode.MULTIRUN)
    params = config.hydra.sweeper.get("params") or {}
    keys = {override.key_or_group for override in given}
    added = [f"{key}={value}" for key, value in params.items() if str(key).lstrip("+~") not in keys]
    if config.hydra.runtime.choices["hydra/launcher"] == "basic":
        given = [override for override in given if override.key_or_group != "hydra/launcher"]
        added.append("hydra/launcher=here")
    return [*config_keys.parse(added, loader), *given]


def first_values(given: Sequence[Override]) -> list[str]:
    """Return the overrides, each with the first of its values."""
    return [
        f"{override.get_key_element()}={override.value().start}"
        if override.is_interval_sweep()
        else _list_values(override)[0]
        for override in given
    ]


def _list_values(override: Override) -> list[str]:
    """Return one override for each value of `override`."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not (override.is_discrete_sweep() or override.is_range_sweep()):
        raise InputError(
            f"{override.input_line}: an interval has no values to list. List them, as in 1,2,3, or let search=tpe draw "
            "from it."
        )
    if not (values := [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]):
        raise InputError(f"{override.input_line}: this sweep has no values.")
    return values


def _is_set_on_copies(override: Override, loader: ConfigLoaderImpl) -> bool:
    is_swept = override.is_sweep_override() and override.type is OverrideType.CHANGE
    return is_swept and not overrides.is_group(override, loader) and not override.key_or_group.startswith("hydra.")


def _set_values(cfg: DictConfig, texts: Sequence[str]) -> DictConfig:
    """Return a copy of the config with these overrides applied."""
    changed = copy.deepcopy(cfg)
    for override in config_keys.parse(texts):
        OmegaConf.update(changed, override.key_or_group, override.value(), merge=True)
    return changed


def _resolve_run(
    cfg: DictConfig,
    choices: Mapping[str, str],
    texts: Sequence[str],
    swept_keys: Sequence[str],
    known_data: dict[Path, str],
) -> DictConfig:
    """Return the config with its run named and `outputs` absolute, as a job may start in another folder."""
    if cfg.resume is not None:
        raise InputError(f"resume={cfg.resume} continues one run in this process; a launcher starts runs of a sweep.")
    experiment = identity.experiment_name(choices.get("experiment"))
    cfg = resume.resolve_run(cfg, experiment, texts, True, swept_keys, known_data)
    cfg.outputs = str(Path(cfg.outputs).expanduser().absolute())
    return cfg


def _find_conflicts(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a problem for each cell that is the same run as an earlier cell or belongs to another sweep."""
    first_cell_of_run: dict[str, Cell] = {}
    for cell in cells:
        first = first_cell_of_run.setdefault(cell.cfg.run, cell)
        if first is not cell:
            yield f"{' '.join(cell.overrides)}: the same run ({cell.cfg.run}) as {' '.join(first.overrides)}"
        if (cell.cfg.outputs, cell.cfg.sweep) != (cells[0].cfg.outputs, cells[0].cfg.sweep):
            here = f"here {cells[0].cfg.sweep}. Give sweep=<name>."
            yield f"{' '.join(cell.overrides)}: one command starts one sweep, {here}"


def warmup_conflicts(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a problem if cells whose warm-up is the same in the files differ in it, because only some are too short."""
    firsts: dict[Any, Cell] = {}
    for cell in cells:
        taken, full = (OmegaConf.select(cell.cfg, key) for key in (WARMUP, FULL_WARMUP))
        first = firsts.setdefault(taken if full is None else full, cell)
        if taken != (other := OmegaConf.select(first.cfg, WARMUP)):
            titles = [each.cfg.about.title or each.cfg.run for each in (first, cell)]
            yield (
                f"{WARMUP}={taken if full is None else full} does not fit into every run: it would be {other} for "
                f"{titles[0]} and {taken} for {titles[1]}. Give {WARMUP}=..."
            )
            return


def notes(cells: Sequence[Cell]) -> list[str]:
    """Say once for each difference from the chosen files which cells have it: values left out, a shorter warm-up."""
    having: dict[str, list[str]] = {}
    for cell in cells:
        left_out = OmegaConf.select(cell.cfg, LEFT_OUT) or {}
        texts = [f"left out of the experiment: {text}" for text in left_out.values()]
        if (full := OmegaConf.select(cell.cfg, FULL_WARMUP)) is not None:
            texts.append(f"{WARMUP}={full} does not fit and is {OmegaConf.select(cell.cfg, WARMUP)}")
        for text in texts:
            having.setdefault(text, []).append(cell.cfg.about.title or cell.cfg.run)
    return [f"{text} ({_these(titles, len(cells))})" for text, titles in having.items()]


def _these(titles: Sequence[str], num_cells: int) -> str:
    return "all runs" if len(titles) == num_cells else f"{count_of(len(titles), 'run')}: {listed(titles, 3)}"
