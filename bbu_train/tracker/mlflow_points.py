"""The points of metrics.jsonl, in batches that MLflow's stores take."""

import json
import math
import posixpath
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

MAX_METRICS = 1000  # of one log_batch; this and the next are limits of MLflow's stores
MAX_NAME = 250


class Point(NamedTuple):
    metric: str
    value: float
    time_ms: int
    step: int


def batches(path: Path, start: int) -> Iterator[tuple[list[Point], int]]:
    """Points of the rows from byte `start` on, and where to start when they are sent.

    A batch ends where a row ends, or the row is longer than a batch may be: then the rest of it follows, and until
    that is sent it starts at that row.
    """
    collected: list[Point] = []
    for begin, end, row in _rows(path, start):
        points = _points(row)
        if collected and len(collected) + len(points) > MAX_METRICS:
            yield collected, begin
            collected = []
        while len(points) > MAX_METRICS:
            yield points[:MAX_METRICS], begin
            points = points[MAX_METRICS:]
        collected += points
        start = end
    if collected:
        yield collected, start


def _rows(path: Path, start: int) -> Iterator[tuple[int, int, dict]]:
    """(first byte, byte after the last, row). A last line without its end is being written."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            end = start + len(line)
            yield start, end, json.loads(line)
            start = end


def _points(row: dict) -> list[Point]:
    """MLflow has no NaN that can be plotted, and stores infinity as 1.8e308: neither becomes a point."""
    step, time_ms = row.pop("step"), int(1000 * row.pop("time/logged", time.time()))
    values = ((metric, float(value)) for metric, value in row.items())
    return [Point(valid_name(metric), value, time_ms, step) for metric, value in values if math.isfinite(value)]


@cache
def valid_name(text: str) -> str:
    """`text` as MLflow takes it: letters of any script, digits and `_-./: `, "_" for the rest; and a proper path."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", text)[:MAX_NAME]).lstrip("./") or "_"
