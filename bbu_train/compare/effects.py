"""The marginal effect of each swept key: the metric at each of its values, adjusted for the other keys."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bbu_train.compare.candidates import Settings, sorted_distinct
from bbu_train.reporting.tables import Value, format_number

MAX_LEVELS = 8
"""A numeric key with more values, as random search gives, is divided into quartiles."""


@dataclass(frozen=True)
class Level:
    """One value of a key, or one quartile of its values."""

    value: Value
    observed: tuple[float, ...]
    """The metric of each run at this level."""
    adjusted: tuple[float, ...]
    """The metric of each run less the effects of the other keys, which confound the mean of an unbalanced sweep."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.observed)

    @property
    def adjusted_mean(self) -> float:
        return statistics.fmean(self.adjusted)

    @property
    def std(self) -> float | None:
        """The standard deviation of the adjusted values over runs; None for a single run."""
        return statistics.stdev(self.adjusted) if len(self.adjusted) > 1 else None


@dataclass(frozen=True)
class Effects:
    by_key: dict[str, tuple[Level, ...]]
    """The levels of each key; the key with the largest `effect_range` comes first."""
    r_squared: float | None
    """The share of the variance between runs that the additive model explains.

    None if the effects cannot be separated, or if the metric is the same in all runs.
    """
    degrees_of_freedom: int
    """Runs less parameters of the additive model. With 0 the model fits any values exactly."""

    @property
    def is_adjusted(self) -> bool:
        """Whether the adjustment changes any mean. It changes none of a balanced sweep."""
        levels = [level for levels in self.by_key.values() for level in levels]
        scale = max((abs(level.mean) for level in levels), default=0)
        return any(abs(level.mean - level.adjusted_mean) > 1e-9 * scale for level in levels)


def estimate_effects(values: Sequence[float], settings: Sequence[Settings], keys: Sequence[str]) -> Effects:
    """Fit the additive model  y_i = m + sum_k e_k[x_ik]  by least squares, each e_k summing to 0 over the runs.

    y_i is the metric of run i, x_ik its value of key k. The adjusted value of run i for key k is
    y_i - sum_{j != k} e_j[x_ij]. Its mean over the runs at one level is m + e_k, which is the plain mean if the sweep
    is balanced. Keys that only vary together make the model unidentifiable: then nothing is adjusted and `r_squared` is
    None.
    """
    observed = np.array(values)
    labels_by_key = {key: _level_labels([each[key] for each in settings]) for key in keys}
    contributions = _fit_additive_model(observed, list(labels_by_key.values()))
    r_squared = None
    if contributions is not None:
        r_squared = _r_squared(observed, sum(contributions) + observed.mean())
    by_key = {}
    for index, (key, labels) in enumerate(labels_by_key.items()):
        others = 0
        if contributions is not None:
            others = sum(contribution for other, contribution in enumerate(contributions) if other != index)
        by_key[key] = _group_by_level(labels, observed, observed - others)
    order = sorted(by_key, key=lambda key: -effect_range(by_key[key]))
    num_parameters = 1 + sum(len(levels) - 1 for levels in by_key.values())
    return Effects({key: by_key[key] for key in order}, r_squared, len(values) - num_parameters)


def effect_range(levels: Sequence[Level]) -> float:
    """Return the difference between the largest and the smallest adjusted mean of a key."""
    means = [level.adjusted_mean for level in levels]
    return max(means) - min(means)


def _group_by_level(labels: Sequence[Value], observed: np.ndarray, adjusted: np.ndarray) -> tuple[Level, ...]:
    levels = []
    for value in dict.fromkeys(sorted(labels, key=_sort_key(labels))):
        at_level = np.array([label == value for label in labels])
        levels.append(Level(value, tuple(observed[at_level].tolist()), tuple(adjusted[at_level].tolist())))
    return tuple(levels)


def _sort_key(labels: Sequence[Value]) -> Callable[[Value], float]:
    """Return the key that sorts labels. Quartiles, "a to b", sort by their first number."""
    if any(isinstance(label, str) and " to " in label for label in labels):
        return lambda label: float(str(label).split(" to ")[0])
    order = {value: index for index, value in enumerate(sorted_distinct(labels))}
    return lambda label: order[label]


def _level_labels(values: Sequence[Value]) -> list[Value]:
    """Return the values, or the quartile of each ("a to b") if there are more than MAX_LEVELS different numbers."""
    distinct = sorted_distinct(values)
    if len(distinct) <= MAX_LEVELS or any(isinstance(value, str) for value in distinct):
        return list(values)
    quartiles = np.array_split(np.array(distinct, dtype=float), 4)
    labels = {
        float(value): f"{format_number(quartile[0])} to {format_number(quartile[-1])}"
        for quartile in quartiles
        for value in quartile
    }
    return [labels[float(value)] for value in values]


def _fit_additive_model(observed: np.ndarray, labels_by_key: Sequence[Sequence[Value]]) -> list[np.ndarray] | None:
    """Return each key's contribution to every run's value, with mean 0 over the runs; None if not identifiable."""
    blocks = [
        np.array([[float(label == level) for level in sorted_distinct(labels)[1:]] for label in labels])
        for labels in labels_by_key
    ]
    design = np.hstack([np.ones((len(observed), 1)), *blocks])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    coefficients = np.linalg.lstsq(design, observed, rcond=None)[0][1:]
    contributions, begin = [], 0
    for block in blocks:
        contribution = block @ coefficients[begin : begin + block.shape[1]]
        contributions.append(contribution - contribution.mean())
        begin += block.shape[1]
    return contributions


def _r_squared(observed: np.ndarray, fitted: np.ndarray) -> float | None:
    variance = float(((observed - observed.mean()) ** 2).sum())
    return 1 - float(((observed - fitted) ** 2).sum()) / variance if variance > 0 else None
