"""The run in MLflow's store that stands for a run's folder: found or made, described, and given what it lacks."""

import getpass
import logging
import os
import time
import uuid
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.runtime.git import git_commit
from bbu_train.tracker.mlflow_points import batches, proper_name
from bbu_train.tracker.mlflow_store import alone, find_or_create_experiment, open_client, transaction
from bbu_train.tracker.mlflow_sweep import ENDED, PARENT, find_or_create_parent, find_or_create_run, show_progress

STATUS = {
    "done": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "preempted": "SCHEDULED",  # it will go on
}
KEY_FILE = "mlflow_key"  # in the run's folder: what its run in the store is found by
MAX_PARAMETERS = 100  # of one log_batch; this and the next are limits of MLflow's stores
MAX_CHARACTERS = 6000  # of a parameter's value
MAX_WAIT = 600  # seconds between two tries
LOGGER = logging.getLogger(__name__)


class StoredRun:
    """Sends the rows of <folder>/metrics.jsonl, which is the spool, and files. Who calls `send` waits for the store.

    Before anything is sent the store is asked for the last step of every metric, and only later points go out. They
    go in the order of their steps, and a batch is taken or refused whole: no point is lost or doubled, whenever this
    process or the store dies. A point that arrives twice all the same (a store that takes it and cannot say so) has
    the time of its row both times, and is the same point to MLflow. A send that fails is tried again, at growing
    intervals from `retry_seconds` on.
    """

    def __init__(
        self,
        *,
        folder: Path,
        uri: str,
        artifacts: Path | None,
        experiment: str,
        sweep: str | None,
        name: str,
        tags: Mapping[str, str],
        parameters: Mapping[str, str],
        retry_seconds: float,
    ):
        self.folder = folder
        self.uri = uri
        self.artifacts = artifacts
        self.experiment = experiment
        self.sweep = sweep
        self.name = name
        self.tags = tags
        self.parameters = parameters
        self.retry_seconds = self.wait = retry_seconds
        self.next_try = 0.0
        self.client = None
        self.failure: str | None = None  # why the last try failed
        self.offset = 0  # in metrics.jsonl; what lies before it is in the store
        self.files: list[Path] = []
        self.ending: tuple[str, int] | None = None  # state, time in ms

    def send(self) -> bool:
        """Send all that waits, and how the run ended if it has; whether nothing waits any more."""
        if self.ending is None and time.monotonic() < self.next_try:
            return False
        try:
            self._send_all()
        except Exception as error:  # of whatever kind: a tracker's failure is never worth a training run
            self._say(error)
            self.client = None  # what arrived is unknown: the next try asks
            self.next_try = time.monotonic() + self.wait
            self.wait = min(2 * self.wait, MAX_WAIT)
            return False
        self.failure = None
        self.next_try = 0.0
        self.wait = self.retry_seconds
        return True

    def num_unsent(self) -> int:
        return sum(len(points) for points, _ in batches(self.folder / "metrics.jsonl", self.offset))

    def _say(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if self.failure is None:
            LOGGER.warning("MLflow (%s) does not answer; the run goes on and tries again: %s", self.uri, reason)
        LOGGER.debug("not sent", exc_info=error)
        self.failure = reason

    def _send_all(self) -> None:
        if self.client is None:
            self._connect()
        self._send_points()
        if self.ending is not None:
            self._end(*self.ending)
        while self.files:
            if self.files[0].exists():
                with transaction(self.uri):
                    self.client.log_artifact(self.run_id, str(self.files[0]), self._place(self.files[0]))
            del self.files[0]

    def _place(self, file: Path) -> str | None:
        """The folder of an artifact: as in the run's own."""
        inside = file.parent.relative_to(self.folder).as_posix() if file.is_relative_to(self.folder) else "."
        return None if inside == "." else inside

    def _send_points(self) -> None:
        from mlflow.entities import Metric

        with transaction(self.uri):
            run = self.client.get_run(self.run_id)
        last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        for points, end in batches(self.folder / "metrics.jsonl", self.offset):
            unsent = [Metric(*point) for point in points if point.step > last_step.get(point.metric, -1)]
            if unsent:
                with transaction(self.uri):
                    self.client.log_batch(self.run_id, metrics=unsent)
            self.offset = end

    def _connect(self) -> None:
        """Find or make the run, and say what it is."""
        client = open_client(self.uri)
        with alone(self.uri):
            self.experiment_id = find_or_create_experiment(client, self.experiment, self.artifacts)
            run = find_or_create_run(client, self.experiment_id, self._key(), self.name, {"state": "running"})
        self.run_id = run.info.run_id
        self.offset = 0  # it may be another run: somebody may have deleted the first
        with transaction(self.uri):
            if self.ending is None:
                client.update_run(self.run_id, status="RUNNING")
            self._describe(client, known=run.data.params)
        self.client = client
        self._join_sweep()

    def _key(self) -> str:
        """What the run is found by. It is the folder's own, written before the run is made."""
        path = self.folder / KEY_FILE
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, uuid.uuid4().hex)
        return path.read_text()

    def _describe(self, client, known: Mapping[str, str]) -> None:
        """Parameters and tags. A parameter of MLflow cannot change: on resume the first value stays."""
        from mlflow.entities import Param, RunTag

        tags = {**self.tags, "folder": str(self.folder), **_surroundings()}
        if self.ending is None:
            tags["state"] = "running"
        client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()])
        proper = {proper_name(key): _cut(value) for key, value in self.parameters.items()}
        parameters = iter(Param(*pair) for pair in proper.items() if pair[0] not in known)
        while batch := list(islice(parameters, MAX_PARAMETERS)):
            client.log_batch(self.run_id, params=batch)

    def _join_sweep(self) -> None:
        """The parent is looked up each time: of two made at once, the younger may have been taken at first."""
        if self.sweep is None:
            return
        parent_id = find_or_create_parent(self.client, self.experiment_id, self.sweep)
        with transaction(self.uri):
            self.client.set_tag(self.run_id, PARENT, parent_id)
            show_progress(self.client, self.experiment_id, parent_id)

    def _end(self, state: str, time_ms: int) -> None:
        with transaction(self.uri):
            self.client.set_tag(self.run_id, "state", state)
            if STATUS[state] in ENDED:
                self.client.set_terminated(self.run_id, STATUS[state], time_ms)
            else:
                self.client.update_run(self.run_id, STATUS[state])
        self._join_sweep()


def _surroundings() -> dict[str, str]:
    """Tags that say whose process this is, which job of SLURM's it belongs to, and which code it runs."""
    environment = os.environ
    job = environment.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in some containers
        user = None
    commit = git_commit()
    tags = {
        "slurm_job_id": job,
        "git_commit": commit,
        "mlflow.user": user,
        "mlflow.source.name": "bbu_train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,  # MLflow shows it on a run's own page only
    }
    return {name: value for name, value in tags.items() if value}


def _cut(value: str) -> str:
    note = f"... (cut: {len(value)} characters; see config.yaml)"
    return value if len(value) <= MAX_CHARACTERS else value[: MAX_CHARACTERS - len(note)] + note
