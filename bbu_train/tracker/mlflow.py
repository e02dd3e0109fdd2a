"""MLflow: the same rows, where runs can be compared. It may be out of reach: a run never waits for it."""

import logging
import math
import posixpath
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bbu_train.tracker.jsonl import read_rows
from bbu_train.tracker.mlflow_store import absolute_uri, be_quiet, experiment_id, open_client

MAX_METRICS = 1000  # of one log_batch; this and the next three are limits of MLflow's stores
MAX_PARAMETERS = 100
MAX_CHARACTERS = 6000  # of a parameter's value
MAX_NAME = 250
STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LOGGER = logging.getLogger(__name__)


class Mlflow:
    """Sends the rows of a run to one MLflow run, each point (a metric at a step) once, however often it is resumed.

    The MLflow run is remembered in <folder>/mlflow_run_id. At each connection the last step of every metric is read
    from the store, and only later points are sent. They come from metrics.jsonl, which the JSONL tracker has opened
    and cut before, and from `log`. Points go out in the order of their steps and a batch is taken or refused whole,
    so there are no gaps. (MLflow has no NaN that can be plotted and stores infinity as 1.8e308: neither is sent.)

    A send that fails is tried again, at growing intervals; the rows wait in memory, and in metrics.jsonl for good.
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
        self.wait = flush_seconds  # until the next try
        self.client = None
        self.failure: str | None = None  # why the last try failed
        self.points: list[tuple] = []  # (metric, value, time in ms, step)
        self.files: list[Path] = []

    @property
    def command(self) -> str:
        """What a person types to see the runs, in whatever environment; for a server, where to look."""
        served = self.uri.startswith("http")
        return (
            self.uri if served else shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", self.uri])
        )

    def open(self, config: dict, step: int) -> None:
        be_quiet()
        self.parameters = {_name(key): _cut(str(value)) for key, value in _flatten(config)}
        rows = self.folder / "metrics.jsonl"
        for _, row in read_rows(rows) if rows.exists() else ():
            self._add(row.pop("step"), row)
        self.flush()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._add(step, metrics)
        enough = len(self.points) >= self.flush_values and self.failure is None
        if enough or time.monotonic() - self.tried >= self.wait:
            self.flush()

    def artifact(self, path: Path) -> None:
        self.files.append(Path(path).absolute())
        self.flush()

    def close(self, state: str) -> None:
        self.flush(state)
        if self.points or self.files:
            LOGGER.warning(
                "MLflow lacks %d values and %d files of this run (%s). metrics.jsonl has every value; "
                "resuming the run sends them.",
                len(self.points),
                len(self.files),
                self.failure,
            )

    def _add(self, step: int, metrics: dict) -> None:
        now = int(time.time() * 1000)
        values = ((_name(metric), float(value), now, step) for metric, value in metrics.items())
        self.points += [point for point in values if math.isfinite(point[1])]

    def flush(self, state: str = "running") -> None:
        """Send all that waits, and the run's state."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self._send(state)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            if self.failure is None:
                LOGGER.warning("MLflow (%s) does not answer; the run goes on and tries again: %s", self.uri, reason)
            self.failure = reason
            self.client = None  # what arrived is unknown: the next try asks
            self.wait = min(2 * self.wait, 3600)
        else:
            self.failure = None
            self.wait = self.flush_seconds
        self.tried = time.monotonic()

    def _send(self, state: str) -> None:
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


def _batches(points: list[tuple]) -> Iterator[list[tuple]]:
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


def _flatten(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(text: str) -> str:
    """`text` as MLflow takes it: letters of any script, digits and `_-./: `, "_" for the rest; and a proper path."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", text)[:MAX_NAME]).lstrip("./") or "_"


def _cut(value: str) -> str:
    note = f"... (cut: {len(value)} characters; see config.yaml)"
    return value if len(value) <= MAX_CHARACTERS else value[: MAX_CHARACTERS - len(note)] + note


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
