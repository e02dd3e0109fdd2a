"""The marginal effect of each swept key: the metric at each of its values, evened out over all other keys."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bbu_train.compare.cells import Settings, in_order
from bbu_train.reporting.tables import Value, number

MAX_LEVELS = 8
"""A number with more values, as in random search, is looked at in quarters."""


@dataclass(frozen=True)
class Level:
    """One value of a key."""

    value: Value
    observed: tuple[float, ...]
    """The metric of each run at this value."""
    adjusted: tuple[float, ...]
    """The same less what the other keys' values add, so that an unbalanced sweep misleads nobody."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.observed)

    @property
    def adjusted_mean(self) -> float:
        return statistics.fmean(self.adjusted)

    @property
    def spread(self) -> float | None:
        """The standard deviation over runs of what the other keys do not explain; None for a single run."""
        return statistics.stdev(self.adjusted) if len(self.adjusted) > 1 else None


@dataclass(frozen=True)
class Effects:
    by_key: dict[str, tuple[Level, ...]]
    """The key with the largest difference between its values first."""
    explained: float | None
    """The share of the variance between runs that the sum of effects explains; None if they cannot be told apart."""
    freedom: int
    """Runs less unknowns; with 0 the sum explains everything, whatever the numbers are."""

    @property
    def balanced(self) -> bool:
        """Whether evening out changes no mean."""
        levels = [level for levels in self.by_key.values() for level in levels]
        scale = max((abs(level.mean) for level in levels), default=0)
        return all(abs(level.mean - level.adjusted_mean) <= 1e-9 * scale for level in levels)


def effects(values: Sequence[float], settings: Sequence[Settings], keys: Sequence[str]) -> Effects:
    """Least squares of  y_i = m + sum over keys k of e_k[x_ik],  each e_k summing to 0 over the runs.

    y_i is the metric of run i, x_ik its value of k. The adjusted values at a level of k are
    y_i - sum over j != k of e_j[x_ij]: their mean is m + e_k there, which in a balanced sweep is the plain mean.
    Keys that change only together leave more unknowns than equations: nothing is adjusted then, `explained` is None.
    """
    observed = np.array(values)
    columns = {key: _levels([its[key] for its in settings]) for key in keys}
    parts = _additive_parts(observed, list(columns.values()))
    explained = None
    if parts is not None:
        explained = _share_explained(observed, sum(parts) + observed.mean())
    by_key = {}
    for index, (key, labels) in enumerate(columns.items()):
        others = sum(part for other, part in enumerate(parts) if other != index) if parts is not None else 0
        by_key[key] = _at_each(labels, observed, observed - others)
    order = sorted(by_key, key=lambda key: -size(by_key[key]))
    unknowns = 1 + sum(len(levels) - 1 for levels in by_key.values())
    return Effects({key: by_key[key] for key in order}, explained, len(values) - unknowns)


def size(levels: Sequence[Level]) -> float:
    """The difference between the best and the worst value of a key."""
    means = [level.adjusted_mean for level in levels]
    return max(means) - min(means)


def _at_each(labels: Sequence[Value], observed: np.ndarray, adjusted: np.ndarray) -> tuple[Level, ...]:
    levels = []
    for value in dict.fromkeys(sorted(labels, key=_order(labels))):
        here = np.array([label == value for label in labels])
        levels.append(Level(value, tuple(observed[here].tolist()), tuple(adjusted[here].tolist())))
    return tuple(levels)


def _order(labels: Sequence[Value]):
    """Quarters sort by their first number."""
    quarters = any(isinstance(label, str) and " to " in label for label in labels)
    order = {value: place for place, value in enumerate(in_order(labels))}
    return (lambda label: float(label.split(" to ")[0])) if quarters else order.get


def _levels(values: Sequence[Value]) -> list[Value]:
    """The values, or their quarters where they are many different numbers."""
    distinct = in_order(values)
    if len(distinct) <= MAX_LEVELS or any(isinstance(value, str) for value in distinct):
        return list(values)
    quarters = np.array_split(np.array(distinct, dtype=float), 4)
    names = {float(value): f"{number(its[0])} to {number(its[-1])}" for its in quarters for value in its}
    return [names[float(value)] for value in values]


def _additive_parts(observed: np.ndarray, columns: Sequence[Sequence[Value]]) -> list[np.ndarray] | None:
    """For each key its part of every run's value, of mean 0 over the runs; None where they cannot be told apart."""
    blocks = [
        np.array([[float(label == level) for level in in_order(labels)[1:]] for label in labels]) for labels in columns
    ]
    design = np.hstack([np.ones((len(observed), 1)), *blocks])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    solution = np.linalg.lstsq(design, observed, rcond=None)[0][1:]
    parts, begin = [], 0
    for block in blocks:
        part = block @ solution[begin : begin + block.shape[1]]
        parts.append(part - part.mean())
        begin += block.shape[1]
    return parts


def _share_explained(observed: np.ndarray, fitted: np.ndarray) -> float | None:
    variance = float(((observed - observed.mean()) ** 2).sum())
    return 1 - float(((observed - fitted) ** 2).sum()) / variance if variance > 0 else None
