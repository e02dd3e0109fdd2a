"""Tracked runs with known curves, for the tests of MLflow."""

import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bbu_train.tracker.jsonl import Jsonl
from bbu_train.tracker.mlflow import Mlflow


class TrackedRun(NamedTuple):
    """The two trackers of a run, in the order in which a run calls them."""

    jsonl: Jsonl
    mlflow: Mlflow

    def log(self, step: int, **metrics: float) -> None:
        for tracker in self:
            tracker.log(step, {"loss/total": 1 / (step + 1), "lr/llm": 1e-5} | metrics)

    def stored(self) -> Any:
        """Return the MLflow run as the store has it."""
        return self.mlflow.uploader.client.get_run(self.mlflow.uploader.run_id)


def mlflow_arguments(outputs: Path, run: str = "run", **changes: Any) -> dict[str, Any]:
    return {
        "folder": str(outputs / "sweep" / run),
        "uri": f"sqlite:///{outputs}/mlflow.db",
        "artifacts": str(outputs / "mlflow-artifacts"),
        "experiment": "sweep",
        "sweep": "sweep",
        "in_sweep": False,
        "run": run,
        "title": None,
        "identity": "a1b2c3d4",
        "overrides": ["loss.weights.giou=2", "data.note=a=b"],
        "columns": ["eval/ap50", "loss/total"],
        "flush_values": 1000,
        "flush_seconds": 3600,
        "wait_seconds": 60,
    } | changes


def make_run(outputs: Path, run: str = "run", **changes: Any) -> TrackedRun:
    return TrackedRun(Jsonl(outputs / "sweep" / run), Mlflow(**mlflow_arguments(outputs, run, **changes)))


CONFIG = {"seed": 17, "loss": {"weights": {"giou": 2.0}}, "data": {"note": "a=b"}}


def begin(outputs: Path, step: int = 0, config: dict[str, Any] = CONFIG, **changes: Any) -> TrackedRun:
    """Make a run and open its trackers; with `step`, resume it."""
    tracked = make_run(outputs, **changes)
    for tracker in tracked:
        tracker.open(config, step)
    return tracked


def read_points(outputs: Path, run: str | None = None) -> list[tuple[str, str, int, float]]:
    """Return (run, metric, step, value) of all runs in the store or of one, sorted."""
    with sqlite3.connect(outputs / "mlflow.db") as database:
        query = "select r.name, key, step, value from metrics m join runs r on m.run_uuid = r.run_uuid"
        return sorted(point for point in database.execute(query) if run in (None, point[0]))


def count_points(outputs: Path) -> int:
    """Count the points of a store that another process may be creating at this moment."""
    try:
        return len(read_points(outputs))
    except sqlite3.OperationalError:
        return 0


def expected_points(steps: Iterable[int], run: str = "run") -> list[tuple[str, str, int, float]]:
    return sorted((run, *point) for s in steps for point in [("loss/total", s, 1 / (s + 1)), ("lr/llm", s, 1e-5)])


def becomes_true(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait until the condition is true, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def log_forever(outputs: Path, **changes: Any) -> None:
    tracked, step = begin(outputs, flush_values=8, **changes), 0
    while True:
        tracked.log(step := step + 1)
        time.sleep(0.001)
