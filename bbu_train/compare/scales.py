"""Where the values of a key lie on an axis: logarithmic over decades, else linear.

Texts lie in even steps, and so do few numbers that would lie too close to be told apart, such as 0, 1e-6 and 1e-5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bbu_train.compare.cells import in_order
from bbu_train.compare.figures import short
from bbu_train.reporting.tables import Value, number

DECADE = 10
MAX_TICKS = 9  # labels that can be read on one axis


@dataclass(frozen=True)
class Scale:
    kind: str
    """"log", "linear" or "even"."""
    places: dict[Value, float]
    """Each value's place, 0 to 1."""
    ticks: list[tuple[float, str]]


def scale(values: Sequence[Value]) -> Scale:
    distinct = in_order(values)
    kind, places = _even(distinct)
    if len(distinct) > 1 and not any(isinstance(value, str) for value in distinct):
        logarithmic = distinct[0] > 0 and distinct[-1] / distinct[0] >= DECADE
        measured = [math.log(value) if logarithmic else float(value) for value in distinct]
        shares = [(each - measured[0]) / (measured[-1] - measured[0]) for each in measured]
        gaps = [after - before for before, after in zip(shares, shares[1:], strict=False)]
        if min(gaps) >= 1 / MAX_TICKS or len(distinct) > MAX_TICKS:
            kind, places = "log" if logarithmic else "linear", shares
    by_value = dict(zip(distinct, places, strict=True))
    return Scale(kind, by_value, _ticks(by_value))


def linear(values: Sequence[float]) -> Scale:
    """Of a measured number: its true distances, whatever labels that costs."""
    low, high = min(values), max(values)
    span = high - low
    places: dict[Value, float] = {value: (value - low) / span if span else 0.5 for value in values}
    marks = [low + span * share for share in (0, 0.25, 0.5, 0.75, 1)] if span else [low]
    return Scale("linear", places, [((mark - low) / span if span else 0.5, number(mark)) for mark in marks])


def _even(distinct: Sequence[Value]) -> tuple[str, list[float]]:
    return "even", [index / max(1, len(distinct) - 1) if len(distinct) > 1 else 0.5 for index in range(len(distinct))]


def _ticks(places: dict[Value, float]) -> list[tuple[float, str]]:
    """The values from the lowest up, less those too close above one that has its label; the highest always."""
    wanted = 1 / MAX_TICKS
    last = max(places.values())
    ticks: list[tuple[float, str]] = []
    for value, place in places.items():
        if place == last or ((not ticks or place - ticks[-1][0] >= wanted * 0.999) and last - place >= wanted * 0.999):
            ticks.append((place, short(value)))
    return ticks
