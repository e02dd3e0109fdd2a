"""What differs between runs, and the cells of a sweep: runs that are equal but for their seed."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bbu_train.compare.sweep import Apart, SweepRun
from bbu_train.reporting.tables import Value
from bbu_train.runs import identity as runs

SEED = "seed"
_ABSENT = object()

Settings = dict[str, Value]
"""What a run, or a cell, has for each key that differs."""


@dataclass(frozen=True, eq=False)
class Scored:
    run: SweepRun
    settings: Settings
    value: float
    step: int


@dataclass(frozen=True, eq=False)
class RankedCell:
    """Runs that differ in nothing but their seed."""

    settings: Settings
    runs: tuple[Scored, ...]
    num_apart: int
    """Runs with these settings that are not compared."""
    rank: int
    """1 is the best; equal means share a rank."""

    @property
    def mean(self) -> float:
        return statistics.fmean(scored.value for scored in self.runs)

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds, n - 1 in its denominator; None for a single run."""
        values = [scored.value for scored in self.runs]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def count(self) -> str:
        """How many runs; "2/3" where one of three is not compared."""
        return f"{len(self.runs)}/{len(self.runs) + self.num_apart}" if self.num_apart else str(len(self.runs))


def settings_of(all_runs: Sequence[SweepRun]) -> list[Settings]:
    """For each run the keys that can change the result and differ between any two, `seed` apart.

    A key that only repeats another by reference is left out. A config group whose choice differs stands for the keys
    that the choice decides: `collator=packed` rather than its `_target_`.
    """
    keys = sorted({key for run in all_runs for key in run.values} - {SEED})
    keys = [key for key in keys if _differs(key, all_runs)]
    groups = [group for group in _groups(all_runs) if any(key.startswith(f"{group}.") for key in keys)]
    keys = [key for key in keys if not any(_decided(key, group, all_runs) for group in groups)]
    return [
        {group: run.choices[group] for group in groups} | {key: shown(run.values.get(key, _ABSENT)) for key in keys}
        for run in all_runs
    ]


def _differs(key: str, all_runs: Sequence[SweepRun]) -> bool:
    resolved = {shown(run.values.get(key, _ABSENT)) for run in all_runs}
    written = {shown(run.raw.get(key, _ABSENT)) for run in all_runs}
    return len(resolved) > 1 and len(written) > 1


def _groups(all_runs: Sequence[SweepRun]) -> list[str]:
    """Config groups whose choice is known of every run and differs."""
    known = set.intersection(*(set(run.choices) for run in all_runs))
    return sorted(
        group for group in known if len({run.choices[group] for run in all_runs}) > 1 and not runs.is_neutral(group)
    )


def _decided(key: str, group: str, all_runs: Sequence[SweepRun]) -> bool:
    """Whether runs with the same choice of `group` have the same value of this key of it."""
    pairs = {(run.choices[group], shown(run.values.get(key, _ABSENT))) for run in all_runs}
    return key.startswith(f"{group}.") and len(pairs) == len({choice for choice, _ in pairs})


def shown(value: Any) -> Value:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 2.0 and 2 are one value of a key
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def scores(
    ended: Sequence[SweepRun], settings: Mapping[str, Settings], metric: str, mode: str, at: str
) -> tuple[list[Scored], list[Apart]]:
    """Each run's value of the metric, at its last step or the best over steps; and the runs that have none."""
    scored, apart = [], []
    for run in ended:
        points = run.series.get(metric, [])
        finite = [point for point in points if math.isfinite(point[1])]
        if not points:
            apart.append(Apart(run.name, f"has no {metric}", run))
        elif not finite or (at == "last" and points[-1] is not finite[-1]):
            apart.append(Apart(run.name, f"{metric} is {points[-1][1]} at step {points[-1][0]}", run))
        else:
            best = min if mode == "min" else max
            step, value = finite[-1] if at == "last" else best(finite, key=lambda point: point[1])
            scored.append(Scored(run, settings[run.name], value, step))
    return scored, apart


def ranked(scored: Sequence[Scored], apart: Sequence[Settings], mode: str) -> list[RankedCell]:
    """The cells, best first. `apart` are the settings of the runs that are not compared."""
    by_cell: dict[str, list[Scored]] = {}
    for each in scored:
        by_cell.setdefault(_identity(each.settings.values()), []).append(each)
    num_apart = {key: sum(_identity(other.values()) == key for other in apart) for key in by_cell}
    cells = [RankedCell(its[0].settings, tuple(its), num_apart[key], 0) for key, its in by_cell.items()]
    cells.sort(key=lambda cell: (-cell.mean if mode == "max" else cell.mean, cell.runs[0].run.name))
    means = [cell.mean for cell in cells]
    return [RankedCell(cell.settings, cell.runs, cell.num_apart, 1 + means.index(cell.mean)) for cell in cells]


def _identity(values: Any) -> str:
    return json.dumps(list(values))


def swept_keys(cells: Sequence[RankedCell]) -> list[str]:
    """The keys that have several values among the cells."""
    return [key for key in cells[0].settings if len({cell.settings[key] for cell in cells}) > 1]


def in_order(values: Any) -> list[Value]:
    """Distinct values: numbers by size, then texts."""
    return sorted(set(values), key=lambda value: (isinstance(value, str), value))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last two parts of each key, or as many more as tell it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        num_parts = 2
        while num_parts < len(parts) and any(
            other != key and f".{other}".endswith("." + ".".join(parts[-num_parts:])) for other in keys
        ):
            num_parts += 1
        names[key] = ".".join(parts[-num_parts:])
    return names
