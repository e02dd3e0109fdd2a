"""The MLflow run of a run's folder: find or create it, describe it, and send it what it lacks."""

import getpass
import logging
import os
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.runtime.git import git_commit
from bbu_train.tracker.mlflow_points import batches, valid_name
from bbu_train.tracker.mlflow_store import exclusive_access, find_or_create_experiment, no_fork, open_client
from bbu_train.tracker.mlflow_sweep import (
    ENDED,
    PARENT,
    find_or_create_parent,
    find_or_create_run,
    update_parent_status,
)
from bbu_train.tracker.mlflow_view import COLOR, prepare_view, take_color

if TYPE_CHECKING:
    import mlflow

STATUS = {
    "done": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "preempted": "SCHEDULED",  # it will be resumed
}
KEY_FILE = "mlflow_key"  # in the run's folder: the key by which its MLflow run is found
MAX_PARAMETERS = 100  # per log_batch; this and the next are limits of MLflow's stores
MAX_VALUE_CHARACTERS = 6000  # of a parameter
MAX_RETRY_SECONDS = 600
LOGGER = logging.getLogger(__name__)


class RunUploader:
    """Sends files and the rows of <folder>/metrics.jsonl, which is the spool. The caller of `send` waits for the store.

    No point is lost or duplicated, even if this process or the store dies. Before sending, `send` asks the store for
    the last step of every metric, and sends only later points, in step order. The store accepts or rejects each batch
    as a whole. If the store accepted a batch but its answer was lost, the batch is sent again; MLflow merges the
    copies, because both carry the timestamp of their row. A send that fails is tried again after `retry_seconds`,
    doubled after each failure.
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
        columns: Sequence[str],
        swept: Collection[str],
        retry_seconds: float,
    ) -> None:
        self.folder = folder
        self.uri = uri
        self.artifacts = artifacts
        self.experiment = experiment
        self.sweep = sweep
        self.name = name
        self.tags = tags
        self.columns = columns
        self.swept = swept
        self.parameters: Mapping[str, str] = {}  # set before the first `send`
        self.retry_seconds = self.retry_delay = retry_seconds
        self.next_try = 0.0
        self.client: mlflow.MlflowClient | None = None
        self.experiment_id: str | None = None  # known from the first time that the store answers
        self.failure: str | None = None  # why the last try failed
        self.offset = 0  # in metrics.jsonl; everything before it is in the store
        self.files: list[Path] = []
        self.ending: tuple[str, int] | None = None  # state, time in ms

    def send(self) -> bool:
        """Send everything unsent, and how the run ended if it has. Return whether nothing is left."""
        if self.ending is None and time.monotonic() < self.next_try:
            return False
        try:
            self._send_all()
        except Exception as error:  # of any kind: a tracker's failure must never end a training run
            self._record_failure(error)
            self.client = None  # it is unknown what arrived: the next try asks
            self.next_try = time.monotonic() + self.retry_delay
            self.retry_delay = min(2 * self.retry_delay, MAX_RETRY_SECONDS)
            return False
        self.failure = None
        self.next_try = 0.0
        self.retry_delay = self.retry_seconds
        return True

    def num_unsent(self) -> int:
        return sum(len(points) for points, _ in batches(self.folder / "metrics.jsonl", self.offset))

    def _record_failure(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        if self.failure is None:
            LOGGER.warning("MLflow (%s) does not answer: %s. The run continues, and tries again.", self.uri, reason)
        LOGGER.debug("not sent", exc_info=error)
        self.failure = reason

    def _send_all(self) -> None:
        client = self.client or self._connect()
        self._send_points(client)
        if self.ending is not None:
            self._end(client, *self.ending)
        while self.files:
            if self.files[0].exists():
                with no_fork(self.uri):
                    client.log_artifact(self.run_id, str(self.files[0]), self._artifact_folder(self.files[0]))
            del self.files[0]

    def _artifact_folder(self, file: Path) -> str | None:
        """Return the artifact's folder: the same as in the run's folder, and None for the top."""
        folder = file.parent.relative_to(self.folder).as_posix() if file.is_relative_to(self.folder) else "."
        return None if folder == "." else folder

    def _send_points(self, client: "mlflow.MlflowClient") -> None:
        from mlflow.entities import Metric

        with no_fork(self.uri):
            run = client.get_run(self.run_id)
        last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        for points, end in batches(self.folder / "metrics.jsonl", self.offset):
            unsent = [Metric(*point) for point in points if point.step > last_step.get(point.metric, -1)]
            if unsent:
                with no_fork(self.uri):
                    client.log_batch(self.run_id, metrics=unsent)
            self.offset = end

    def _connect(self) -> "mlflow.MlflowClient":
        """Find or create the run and describe it."""
        client = open_client(self.uri)
        with exclusive_access(self.uri):
            self.experiment_id = find_or_create_experiment(client, self.experiment, self.artifacts)
            prepare_view(client, self.experiment_id, self.columns, [valid_name(key) for key in self.swept])
            run = find_or_create_run(
                client, self.experiment_id, self._read_or_create_key(), self.name, {"state": "running"}
            )
            self.run_id = run.info.run_id
            if COLOR not in run.data.tags:
                client.set_tag(self.run_id, COLOR, take_color(client, self.experiment_id))
        self.offset = 0  # it may be a new run, if somebody deleted the first
        with no_fork(self.uri):
            if self.ending is None:
                client.update_run(self.run_id, status="RUNNING")
            self._describe(client, known=run.data.params)
        self.client = client
        self._join_sweep(client)
        return client

    def _read_or_create_key(self) -> str:
        """Return the key by which the run is found. It is written to the folder before the run is created."""
        path = self.folder / KEY_FILE
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, uuid.uuid4().hex)
        return path.read_text()

    def _describe(self, client: "mlflow.MlflowClient", known: Mapping[str, str]) -> None:
        """Set tags and parameters. A parameter cannot change in MLflow: on resume, the first value stays."""
        from mlflow.entities import Param, RunTag

        tags = {**self.tags, "folder": str(self.folder), **_environment_tags()}
        if self.ending is None:
            tags["state"] = "running"
        client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()])
        values = {valid_name(key): _truncate(value) for key, value in self.parameters.items()}
        parameters = iter(Param(*pair) for pair in values.items() if pair[0] not in known)
        while batch := list(islice(parameters, MAX_PARAMETERS)):
            client.log_batch(self.run_id, params=batch)

    def _join_sweep(self, client: "mlflow.MlflowClient") -> None:
        """Make the run a child of the sweep's run.

        The parent is looked up each time: if two were created at the same time, the first look-up may have returned the
        one that was deleted later.
        """
        if self.sweep is None:
            return
        parent_id = find_or_create_parent(client, self.experiment_id, self.sweep)
        with no_fork(self.uri):
            client.set_tag(self.run_id, PARENT, parent_id)
            update_parent_status(client, self.experiment_id, parent_id)

    def _end(self, client: "mlflow.MlflowClient", state: str, time_ms: int) -> None:
        with no_fork(self.uri):
            client.set_tag(self.run_id, "state", state)
            if STATUS[state] in ENDED:
                client.set_terminated(self.run_id, STATUS[state], time_ms)
            else:
                client.update_run(self.run_id, STATUS[state])
        self._join_sweep(client)


def _environment_tags() -> dict[str, str]:
    """Return tags for the user, the SLURM job and the git commit of this process."""
    environment = os.environ
    job = environment.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # the user id has no name, as in some containers
        user = None
    commit = git_commit()
    tags = {
        "slurm_job_id": job,
        "git_commit": commit,
        "mlflow.user": user,
        "mlflow.source.name": "bbu_train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,  # MLflow shows this one, but only on a run's page
    }
    return {name: value for name, value in tags.items() if value}


def _truncate(value: str) -> str:
    note = f"... (cut: {len(value)} characters; see config.yaml)"
    return value if len(value) <= MAX_VALUE_CHARACTERS else value[: MAX_VALUE_CHARACTERS - len(note)] + note
