"""MLflow: the same rows, where runs can be compared. It may be slow or out of reach: training does not wait for it."""

import logging
import math
import posixpath
import re
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from bbu_train.tracker.jsonl import read_rows
from bbu_train.tracker.mlflow_run import Point, StoredRun
from bbu_train.tracker.mlflow_store import absolute_uri, be_quiet

MAX_CHARACTERS = 6000  # of a parameter's value; this and the next are limits of MLflow's stores
MAX_NAME = 250
LOGGER = logging.getLogger(__name__)


class Mlflow:
    """Collects the rows of a run and hands them, in order, to a thread of its own that sends them (`StoredRun`).

    Each point (a metric at a step) is sent once, however often the run is resumed. Points come from metrics.jsonl,
    which the JSONL tracker has opened and cut before, and from `log`. What a kill leaves unsent is in metrics.jsonl,
    and sent at resume. (MLflow has no NaN that can be plotted and stores infinity as 1.8e308: neither is sent.)
    """

    def __init__(
        self,
        *,
        folder: Path | str,
        uri: str,
        artifacts: Path | str | None,
        experiment: str,
        run_name: str,
        flush_values: int,
        flush_seconds: int,
    ):
        self.folder = Path(folder).absolute()
        self.uri = absolute_uri(uri)
        self.artifacts = None if artifacts is None else Path(artifacts).absolute()
        self.experiment = experiment
        self.run_name = run_name
        self.flush_values = flush_values
        self.flush_seconds = flush_seconds
        self.points: list[Point] = []  # not yet handed over
        self.sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")  # one, so order is kept
        self.sending: deque[Future] = deque()

    @property
    def command(self) -> str:
        """What a person types to see the runs, in whatever environment; for a server, where to look."""
        served = self.uri.startswith("http")
        return (
            self.uri if served else shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", self.uri])
        )

    def open(self, config: dict, step: int) -> None:
        """Connects before it returns: MLflow's import, under one's feet, would slow the first steps down."""
        be_quiet()
        parameters = {_name(key): _cut(str(value)) for key, value in _flatten(config)}
        place = self.folder, self.uri, self.artifacts, self.experiment, self.run_name
        self.stored = StoredRun(*place, parameters, retry_seconds=self.flush_seconds)
        rows = self.folder / "metrics.jsonl"
        for _, row in read_rows(rows) if rows.exists() else ():
            self._add(row.pop("step"), row)
        self._hand_over()
        self._wait()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._add(step, metrics)
        if len(self.points) >= self.flush_values or time.monotonic() - self.handed_over >= self.flush_seconds:
            self._hand_over()

    def artifact(self, path: Path) -> None:
        self._hand_over([Path(path).absolute()])

    def close(self, state: str) -> None:
        """Waits until everything is sent, or cannot be."""
        self._hand_over(state=state)
        self._wait()
        self.sender.shutdown()
        if self.stored.points or self.stored.files:
            LOGGER.warning(
                "MLflow lacks %d values and %d files of this run (%s). metrics.jsonl has every value; "
                "resuming the run sends them.",
                len(self.stored.points),
                len(self.stored.files),
                self.stored.failure,
            )

    def _add(self, step: int, metrics: dict) -> None:
        now = int(time.time() * 1000)
        values = ((_name(metric), float(value), now, step) for metric, value in metrics.items())
        self.points += [point for point in values if math.isfinite(point[1])]

    def _hand_over(self, files: Sequence[Path] = (), state: str = "running") -> None:
        while self.sending and self.sending[0].done():
            self.sending.popleft().result()  # raises what is a defect and not the store's failure
        self.sending.append(self.sender.submit(self.stored.send, self.points, files, state))
        self.points = []
        self.handed_over = time.monotonic()

    def _wait(self) -> None:
        while self.sending:
            self.sending.popleft().result()


def _flatten(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def _name(text: str) -> str:
    """`text` as MLflow takes it: letters of any script, digits and `_-./: `, "_" for the rest; and a proper path."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", text)[:MAX_NAME]).lstrip("./") or "_"


def _cut(value: str) -> str:
    note = f"... (cut: {len(value)} characters; see config.yaml)"
    return value if len(value) <= MAX_CHARACTERS else value[: MAX_CHARACTERS - len(note)] + note
