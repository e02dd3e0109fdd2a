"""The points of metrics.jsonl, in batches of the size that MLflow's stores accept."""

import json
import math
import posixpath
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

MAX_METRICS = 1000  # per log_batch; this and the next are limits of MLflow's stores
MAX_NAME_CHARACTERS = 250


class Point(NamedTuple):
    metric: str
    value: float
    time_ms: int
    step: int


def batches(path: Path, start: int) -> Iterator[tuple[list[Point], int]]:
    """Yield the points of the rows from byte `start` on, and the byte to start from once they are sent.

    A batch ends at the end of a row. A row with more points than a batch may have is split, and until its last part is
    sent, the byte to start from is the beginning of that row.
    """
    collected: list[Point] = []
    for begin, end, row in _read_rows(path, start):
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


def _read_rows(path: Path, start: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (first byte, byte after the last, row). A last line without a newline is still being written."""
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


def _points(row: dict[str, Any]) -> list[Point]:
    """Return the row's finite values as points. MLflow cannot plot NaN, and stores infinity as 1.8e308."""
    step, time_ms = row.pop("step"), int(1000 * row.pop("time/logged", time.time()))
    values = ((metric, float(value)) for metric, value in row.items())
    return [Point(valid_name(metric), value, time_ms, step) for metric, value in values if math.isfinite(value)]


@cache
def valid_name(text: str) -> str:
    """Return `text` as a name that MLflow accepts: a normal path of letters of any script, digits and `_-./: `.

    Other characters become "_".
    """
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", text)[:MAX_NAME_CHARACTERS]).lstrip("./") or "_"
