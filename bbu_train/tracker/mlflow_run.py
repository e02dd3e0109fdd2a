"""The run in MLflow's store that stands for a run's folder: what it has, what waits for it, how it is sent."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from bbu_train.tracker.mlflow_store import experiment_id, open_client

MAX_METRICS = 1000  # of one log_batch; this and the next are limits of MLflow's stores
MAX_PARAMETERS = 100
STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "preempted": "KILLED"}
LOGGER = logging.getLogger(__name__)

Point = tuple[str, float, int, int]
"""Metric, value, time in ms, step."""

_in_store = threading.RLock()
# A process that is forked in the middle of a transaction would have half of it: forks wait for its end.
os.register_at_fork(before=_in_store.acquire, after_in_parent=_in_store.release, after_in_child=_in_store.release)


class StoredRun:
    """Takes points and files, in order, and sends each once. Whoever calls `send` waits for the store.

    The MLflow run is remembered in <folder>/mlflow_run_id. At each connection the last step of every metric is read
    from the store, and only later points are sent. Points go out in the order of their steps and a batch is taken or
    refused whole, so there are no gaps. A send that fails is tried again, at growing intervals from `retry_seconds` to
    an hour.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        artifacts: Path | None,
        experiment: str,
        run_name: str,
        parameters: dict[str, str],
        retry_seconds: int,
    ):
        self.folder = folder
        self.uri = uri
        self.artifacts = artifacts
        self.experiment = experiment
        self.run_name = run_name
        self.parameters = parameters
        self.retry_seconds = self.wait = retry_seconds
        self.next_try = 0.0
        self.client = None
        self.failure: str | None = None  # why the last try failed
        self.points: list[Point] = []
        self.files: list[Path] = []

    def send(self, points: Sequence[Point], files: Sequence[Path], state: str) -> None:
        """Send these, all that waits, and the run's state. After a failure they wait too, but at the run's end."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self.points += points
        self.files += files
        if state == "running" and time.monotonic() < self.next_try:
            return
        try:
            with _in_store:
                self._send_all(state)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            if self.failure is None:
                LOGGER.warning("MLflow (%s) does not answer; the run goes on and tries again: %s", self.uri, reason)
            self.failure = reason
            self.client = None  # what arrived is unknown: the next try asks
            self.next_try = time.monotonic() + self.wait
            self.wait = min(2 * self.wait, 3600)
        else:
            self.failure = None
            self.next_try = 0.0
            self.wait = self.retry_seconds

    def _send_all(self, state: str) -> None:
        from mlflow.entities import Metric

        if self.client is None:
            self._connect()
        self.points = [point for point in self.points if point[3] > self.last_step.get(point[0], -1)]
        for batch in list(_batches(self.points)):
            self.client.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])
            del self.points[: len(batch)]
        while self.files:
            self.client.log_artifact(self.run_id, str(self.files[0]))
            del self.files[0]
        if state != "running":
            self.client.set_tag(self.run_id, "state", state)
            self.client.set_terminated(self.run_id, STATUS[state])

    def _connect(self) -> None:
        """Find or make the run, and see what it has."""
        client = open_client(self.uri)
        run = self._remembered(client) or self._new(client)
        self.run_id = run.info.run_id
        client.update_run(self.run_id, status="RUNNING")
        self._describe(client, known=run.data.params)
        self.last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self.client = client

    def _remembered(self, client):
        """The run that this folder began; None if there is none, or if somebody deleted it or its store."""
        from mlflow.exceptions import MlflowException

        path = self.folder / "mlflow_run_id"
        if not path.exists():
            return None
        try:
            run = client.get_run(path.read_text().strip())
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _new(self, client):
        run = client.create_run(experiment_id(client, self.experiment, self.artifacts), run_name=self.run_name)
        self.folder.mkdir(parents=True, exist_ok=True)
        unnamed = self.folder / "mlflow_run_id.tmp"
        unnamed.write_text(run.info.run_id)
        unnamed.replace(self.folder / "mlflow_run_id")
        return run

    def _describe(self, client, known: dict) -> None:
        """Config and tags. A parameter of MLflow cannot change: on resume the first value stays."""
        from mlflow.entities import Param, RunTag

        tags = {"folder": str(self.folder), "state": "running"}
        if commit := _git_commit():
            tags["mlflow.source.git.commit"] = commit
        client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()])
        parameters = iter(Param(*pair) for pair in self.parameters.items() if pair[0] not in known)
        while batch := list(islice(parameters, MAX_PARAMETERS)):
            client.log_batch(self.run_id, params=batch)


def _batches(points: list[Point]) -> Iterator[list[Point]]:
    """Runs of at most 1,000 points that end where a step ends, if the step is not itself longer."""
    start = 0
    while start < len(points):
        end = min(start + MAX_METRICS, len(points))
        whole = end
        while end < len(points) and whole > start and points[whole - 1][3] == points[end][3]:
            whole -= 1
        end = whole if whole > start else end
        yield points[start:end]
        start = end


def _git_commit() -> str | None:
    """The commit of the checkout that this file lies in, "-dirty" if it has changes; None where it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
