"""The position of a key's values on a plot axis: logarithmic if they span a decade, else linear.

Texts are spaced evenly. Numbers are also spaced evenly if there are at most MAX_TICKS of them and two would lie too
close for their labels, such as 0, 1e-6 and 1e-5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bbu_train.compare.candidates import sorted_distinct
from bbu_train.compare.formatting import abbreviate
from bbu_train.reporting.tables import Value, format_number

DECADE = 10
MAX_TICKS = 9  # labels that can be read on one axis


@dataclass(frozen=True)
class AxisScale:
    kind: str
    """"log", "linear" or "even"."""
    positions: dict[Value, float]
    """The position of each value, from 0 to 1."""
    ticks: list[tuple[float, str]]
    """(position, label) of each tick."""


def setting_scale(values: Sequence[Value]) -> AxisScale:
    """Return the scale of a swept key."""
    distinct = sorted_distinct(values)
    kind, positions = "even", _even_positions(len(distinct))
    if len(distinct) > 1 and not any(isinstance(value, str) for value in distinct):
        is_log = distinct[0] > 0 and distinct[-1] / distinct[0] >= DECADE
        coordinates = [math.log(value) if is_log else float(value) for value in distinct]
        span = coordinates[-1] - coordinates[0]
        proportional = [(coordinate - coordinates[0]) / span for coordinate in coordinates]
        gaps = [after - before for before, after in zip(proportional, proportional[1:], strict=False)]
        if min(gaps) >= 1 / MAX_TICKS or len(distinct) > MAX_TICKS:
            kind, positions = "log" if is_log else "linear", proportional
    position_of = dict(zip(distinct, positions, strict=True))
    return AxisScale(kind, position_of, _ticks(position_of))


def metric_scale(values: Sequence[float]) -> AxisScale:
    """Return the linear scale of a metric, with five ticks. Values may be as close as they are: they need no labels."""
    low, high = min(values), max(values)
    span = high - low
    positions: dict[Value, float] = {value: (value - low) / span if span else 0.5 for value in values}
    marks = [low + span * share for share in (0, 0.25, 0.5, 0.75, 1)] if span else [low]
    ticks = [((mark - low) / span if span else 0.5, format_number(mark)) for mark in marks]
    return AxisScale("linear", positions, ticks)


def _even_positions(num_values: int) -> list[float]:
    return [index / (num_values - 1) for index in range(num_values)] if num_values > 1 else [0.5]


def _ticks(positions: dict[Value, float]) -> list[tuple[float, str]]:
    """Label the sorted values from the lowest up, and always the highest. Skip those too close to another label."""
    min_distance = 0.999 / MAX_TICKS
    last = max(positions.values())
    ticks: list[tuple[float, str]] = []
    for value, position in positions.items():
        is_far = not ticks or position - ticks[-1][0] >= min_distance
        if position == last or (is_far and last - position >= min_distance):
            ticks.append((position, abbreviate(value)))
    return ticks
