"""Runs as the trackers see them, with curves that are known, for the tests of MLflow."""

import sqlite3
import time

from bbu_train.tracker.jsonl import Jsonl
from bbu_train.tracker.mlflow import Mlflow


def arguments(outputs, run="run", **changed):
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
        "flush_values": 1000,
        "flush_seconds": 3600,
        "wait_seconds": 60,
    } | changed


def trackers(outputs, run="run", **changed):
    return Jsonl(outputs / "sweep" / run), Mlflow(**arguments(outputs, run, **changed))


def begin(outputs, step=0, **changed):
    both = trackers(outputs, **changed)
    for tracker in both:
        tracker.open({}, step)
    return both


def log(both, step, **metrics):
    for tracker in both:
        tracker.log(step, {"loss/total": 1 / (step + 1), "lr/llm": 1e-5} | metrics)


def points(outputs, run=None):
    """(run, metric, step, value) of the whole store or a run, in order."""
    with sqlite3.connect(outputs / "mlflow.db") as database:
        query = "select r.name, key, step, value from metrics m join runs r on m.run_uuid = r.run_uuid"
        return sorted(point for point in database.execute(query) if run in (None, point[0]))


def expected(steps, run="run"):
    return sorted((run, *point) for s in steps for point in [("loss/total", s, 1 / (s + 1)), ("lr/llm", s, 1e-5)])


def the_run(both):
    stored = both[1].stored
    return stored.client.get_run(stored.run_id)


def comes_true(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def num_points(outputs):
    """Of a store that another process may be making at this moment."""
    try:
        return len(points(outputs))
    except sqlite3.OperationalError:
        return 0


def log_without_end(outputs, **changed):
    both, step = begin(outputs, flush_values=8, **changed), 0
    while True:
        log(both, step := step + 1)
        time.sleep(0.001)
