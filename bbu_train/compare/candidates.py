"""The settings that differ between runs, and the candidates of a sweep: runs that differ only in their seed
are one candidate."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from bbu_train.compare.sweep import ExcludedRun, SweepRun
from bbu_train.reporting.tables import Value
from bbu_train.runs import identity

SEED = "seed"
_ABSENT = object()

Settings = dict[str, Value]
"""The value of each differing key, for a run or a candidate."""


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """A run with its value of the compared metric, and the step that value is from."""

    run: SweepRun
    settings: Settings
    value: float
    step: int


@dataclass(frozen=True, eq=False)
class Candidate:
    """A setting of the swept keys: runs that differ only in their seed."""

    settings: Settings
    runs: tuple[ScoredRun, ...]
    num_excluded: int
    """The number of runs with these settings that are not compared."""
    rank: int
    """1 is the best; candidates with equal means share a rank."""

    @property
    def mean(self) -> float:
        return statistics.fmean(run.value for run in self.runs)

    @property
    def std(self) -> float | None:
        """The standard deviation over seeds, with denominator n - 1; None for a single run."""
        values = [run.value for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def run_count(self) -> str:
        """The number of runs as a text: "2/3" if one of three is not compared."""
        num_runs = len(self.runs)
        return f"{num_runs}/{num_runs + self.num_excluded}" if self.num_excluded else str(num_runs)


def differing_settings(all_runs: Sequence[SweepRun]) -> list[Settings]:
    """Return, for each run, the values of the keys that can change the result and differ between runs.

    `seed` is excluded, and so is a key that is the same reference (`${...}`) to another key in all runs. A config group
    whose choice differs replaces the keys that the choice determines: `collator=packed` instead of its `_target_`. Data
    that differs is named by its root, and weights to begin with by `init`.
    """
    keys = sorted({key for run in all_runs for key in run.resolved_values} - {SEED})
    keys = [key for key in keys if _differs(key, all_runs)]
    groups = [group for group in _differing_groups(all_runs) if any(key.startswith(f"{group}.") for key in keys)]
    keys = [key for key in keys if not any(_is_determined_by(group, key, all_runs) for group in groups)]
    settings = [
        {group: run.choices[group] for group in groups}
        | {key: comparable_value(run.resolved_values.get(key, _ABSENT)) for key in keys}
        for run in all_runs
    ]
    settings = _name_init(settings, all_runs) if identity.INIT in keys else settings
    return _name_data(settings, all_runs) if identity.DATA in keys else settings


def _name_init(settings: Sequence[Settings], all_runs: Sequence[SweepRun]) -> list[Settings]:
    """Replace the hash of the weights that each run began with by the first folder that holds them."""
    folders: dict[Value, str] = {}
    for each, run in zip(settings, all_runs, strict=True):
        folder, digest = str(OmegaConf.select(run.config, "init")), each[identity.INIT]
        folders[digest] = min(folder, folders.get(digest, folder))
    return [
        {key: value for key, value in each.items() if key != identity.INIT} | {"init": folders[each[identity.INIT]]}
        for each in settings
    ]


def _name_data(settings: Sequence[Settings], all_runs: Sequence[SweepRun]) -> list[Settings]:
    """Replace the fingerprint of each run's data by its root, or leave it out if the choice of `data` determines it.

    The same data in several folders has the alphabetically first of these roots; other data in the same folder has the
    fingerprint beside the root.
    """
    roots: dict[Value, str] = {}
    for each, run in zip(settings, all_runs, strict=True):
        keys = [key for key in run.unresolved_values if identity.is_data_root(key)]
        root = ", ".join(str(OmegaConf.select(run.config, key)) for key in keys)
        roots[each[identity.DATA]] = min(root, roots.get(each[identity.DATA], root))
    shared = Counter(roots.values())
    names = {data: f"{root} ({str(data)[:8]})" if shared[root] > 1 else root for data, root in roots.items()}
    choices = {(each.get("data"), each[identity.DATA]) for each in settings}
    is_determined = "data" in settings[0] and len(choices) == len({choice for choice, _ in choices})
    return [
        {key: value for key, value in each.items() if key != identity.DATA}
        | ({} if is_determined else {"data.root": names[each[identity.DATA]]})
        for each in settings
    ]


def _differs(key: str, all_runs: Sequence[SweepRun]) -> bool:
    resolved = {comparable_value(run.resolved_values.get(key, _ABSENT)) for run in all_runs}
    unresolved = {comparable_value(run.unresolved_values.get(key, _ABSENT)) for run in all_runs}
    return len(resolved) > 1 and len(unresolved) > 1


def _differing_groups(all_runs: Sequence[SweepRun]) -> list[str]:
    """Return the config groups whose choice differs and is recorded for every run."""
    recorded = set.intersection(*(set(run.choices) for run in all_runs))
    return sorted(
        group
        for group in recorded
        if len({run.choices[group] for run in all_runs}) > 1 and not identity.is_neutral(group)
    )


def _is_determined_by(group: str, key: str, all_runs: Sequence[SweepRun]) -> bool:
    """Return whether `key` lies in `group` and has one value for each choice of the group."""
    pairs = {(run.choices[group], comparable_value(run.resolved_values.get(key, _ABSENT))) for run in all_runs}
    return key.startswith(f"{group}.") and len(pairs) == len({choice for choice, _ in pairs})


def comparable_value(value: Any) -> Value:
    """Return a config value as a number or a text, equal for equal settings: 2.0 and 2 are both 2."""
    if value is _ABSENT:
        return "absent"
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def score_runs(
    finished: Sequence[SweepRun], settings: Mapping[str, Settings], metric: str, mode: str, at: str
) -> tuple[list[ScoredRun], list[ExcludedRun]]:
    """Give each run its value of the metric: at its last step, or the best over its steps.

    Runs without a finite value are returned second.
    """
    scored, excluded = [], []
    for run in finished:
        points = run.series.get(metric, [])
        finite = [point for point in points if math.isfinite(point[1])]
        if not points:
            excluded.append(ExcludedRun(run.name, f"has no {metric}", run))
        elif not finite or (at == "last" and points[-1] is not finite[-1]):
            excluded.append(ExcludedRun(run.name, f"{metric} is {points[-1][1]} at step {points[-1][0]}", run))
        else:
            best = min if mode == "min" else max
            step, value = finite[-1] if at == "last" else best(finite, key=lambda point: point[1])
            scored.append(ScoredRun(run, settings[run.name], value, step))
    return scored, excluded


def rank_candidates(scored: Sequence[ScoredRun], excluded: Sequence[Settings], mode: str) -> list[Candidate]:
    """Group the runs into candidates, best first. `excluded` holds the settings of the runs that are not compared."""
    by_candidate: dict[str, list[ScoredRun]] = {}
    for run in scored:
        by_candidate.setdefault(_candidate_key(run.settings), []).append(run)
    num_excluded = {key: sum(_candidate_key(settings) == key for settings in excluded) for key in by_candidate}
    candidates = [Candidate(runs[0].settings, tuple(runs), num_excluded[key], 0) for key, runs in by_candidate.items()]
    candidates.sort(
        key=lambda candidate: (-candidate.mean if mode == "max" else candidate.mean, candidate.runs[0].run.name)
    )
    means = [candidate.mean for candidate in candidates]
    return [
        Candidate(candidate.settings, candidate.runs, candidate.num_excluded, 1 + means.index(candidate.mean))
        for candidate in candidates
    ]


def _candidate_key(settings: Settings) -> str:
    return json.dumps(list(settings.values()))


def swept_keys(candidates: Sequence[Candidate]) -> list[str]:
    """Return the keys that have several values among the candidates."""
    return [key for key in candidates[0].settings if len({candidate.settings[key] for candidate in candidates}) > 1]


def sorted_distinct(values: Iterable[Value]) -> list[Value]:
    """Return the distinct values: numbers by size, then texts."""
    return sorted(set(values), key=lambda value: (isinstance(value, str), value))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Map each key to its last two parts, or to as many more as tell it from the other keys."""
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
