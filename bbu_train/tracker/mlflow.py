"""Sending the rows of metrics.jsonl to MLflow, where runs can be compared. Training never waits for it."""

import json
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.tracker.mlflow_parameters import parameters_of
from bbu_train.tracker.mlflow_run import RunUploader
from bbu_train.tracker.mlflow_store import absolute_uri, silence_mlflow
from bbu_train.tracker.mlflow_view import runs_page

UNSENT = "mlflow_unsent.json"
LOCAL_ADDRESS = "http://127.0.0.1:5000/"  # of `mlflow ui`
LOGGER = logging.getLogger(__name__)


class Mlflow:
    """Send the rows of metrics.jsonl, which the JSONL tracker writes first, from a separate thread (`RunUploader`).

    Only the start and the end of a run wait for the store, each for at most `wait_seconds`. A run that ends with
    something unsent leaves <folder>/mlflow_unsent.json. Its rows and files are sent by `python -m bbu_train.replay`, or
    when the run is resumed. A run that was killed leaves no such file: resuming it sends its rows, and those files that
    it writes again.
    """

    def __init__(
        self,
        *,
        folder: Path | str,
        uri: str,
        artifacts: Path | str | None,
        experiment: str,
        sweep: str,
        in_sweep: bool,
        run: str,
        title: str | None,
        identity: str | None,
        overrides: Sequence[str],
        columns: Sequence[str],
        flush_values: int,
        flush_seconds: float,
        wait_seconds: float,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.uri = absolute_uri(uri)
        self.flush_values = flush_values
        self.wait_seconds = wait_seconds
        self.num_values = 0  # since the last flush
        self.uploader = RunUploader(
            folder=self.folder,
            uri=self.uri,
            artifacts=None if artifacts is None else Path(artifacts).absolute(),
            experiment=experiment,
            sweep=sweep if in_sweep else None,
            name=title or run,
            tags={} if identity is None else {"identity": identity},
            columns=columns,
            swept=[override.partition("=")[0].lstrip("+~") for override in overrides],
            retry_seconds=flush_seconds,
        )
        self.thread = UploadThread(self.uploader, flush_seconds)

    @property
    def command(self) -> str | None:
        """The command that shows the runs, valid in any folder and environment, and below it the page to open.

        For a server it is the page alone, and None while the server does not answer. The page is that of this run's
        experiment, if the store has answered.
        """
        experiment_id = self.uploader.experiment_id
        if self.uri.startswith("http"):
            is_answering = experiment_id is not None and self.uploader.failure is None
            return runs_page(f"{self.uri}/", experiment_id) if is_answering else None
        page = LOCAL_ADDRESS if experiment_id is None else runs_page(LOCAL_ADDRESS, experiment_id)
        return f"{shlex.join([sys.executable, '-m', 'mlflow', 'ui', '--backend-store-uri', self.uri])}\n{page}"

    def open(self, config: dict[str, Any], step: int) -> None:
        """Connect to the store. MLflow is imported here, because in the thread it would slow down the first steps."""
        silence_mlflow()
        import mlflow  # noqa: F401

        self.uploader.parameters = parameters_of(config, self.folder)
        self.uploader.files = [self.folder / "config.yaml", *self._unsent_files()]
        self.thread.start()
        self.thread.flush()
        if not self.thread.wait(self.wait_seconds):
            LOGGER.warning("MLflow (%s) has not answered for %g s. The run continues.", self.uri, self.wait_seconds)
        elif self.uploader.failure is None:
            (self.folder / UNSENT).unlink(missing_ok=True)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.num_values += len(metrics)
        if self.num_values >= self.flush_values:
            self.num_values = 0
            self.thread.flush()

    def sync(self) -> None:
        """Do nothing: what is not sent yet can be sent again from metrics.jsonl."""

    def artifact(self, path: Path) -> None:
        self.uploader.files.append(Path(path).absolute())
        self.thread.flush()

    def close(self, state: str) -> None:
        """Send what is left. It is recorded in a file first, so that a kill while it is being sent loses nothing."""
        self.uploader.ending = ending = state, int(1000 * time.time())
        self.uploader.files.append(self.folder / "train.log")
        files = [os.path.relpath(file, self.folder) for file in list(self.uploader.files)]
        atomic_write(self.folder / UNSENT, json.dumps({"ending": ending, "files": files}))
        self.thread.close()
        if self.thread.wait(self.wait_seconds) and self.uploader.failure is None:
            (self.folder / UNSENT).unlink()
            return
        LOGGER.warning(
            "MLflow (%s) lacks the end of this run, with %d values: %s. metrics.jsonl has every value. When MLflow "
            "answers again, send what is missing: python -m bbu_train.replay %s",
            self.uri,
            self.uploader.num_unsent(),
            self.uploader.failure or f"no answer within {self.wait_seconds} seconds",
            shlex.quote(str(self.folder)),
        )

    def replay(self, config: dict[str, Any]) -> bool:
        """Send what an ended run left unsent, and return whether MLflow has all of it now. Waits for the store."""
        silence_mlflow()
        self.uploader.parameters = parameters_of(config, self.folder)
        unsent = json.loads((self.folder / UNSENT).read_text())
        state, time_ms = unsent["ending"]
        self.uploader.ending = state, time_ms
        self.uploader.files = self._unsent_files()
        if not self.uploader.send():
            return False
        (self.folder / UNSENT).unlink()
        return True

    def _unsent_files(self) -> list[Path]:
        """Return the files that an earlier attempt at the run could not send."""
        path = self.folder / UNSENT
        files = json.loads(path.read_text())["files"] if path.exists() else []
        return [self.folder / file for file in files]


class UploadThread(threading.Thread):
    """A thread that sends every `seconds` and when asked to.

    It is a daemon thread, so that a store that hangs does not keep the process alive.
    """

    def __init__(self, uploader: RunUploader, seconds: float) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.uploader = uploader
        self.seconds = seconds
        self.changed = threading.Condition()
        self.num_requested = self.num_handled = 0  # flushes
        self.is_closing = False

    def flush(self) -> None:
        """Request a send, without waiting for it."""
        with self.changed:
            self.num_requested += 1
            self.changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait for at most `seconds`, and return whether everything requested so far has been tried."""
        with self.changed:
            num_requested = self.num_requested
            return self.changed.wait_for(lambda: self.num_handled >= num_requested, seconds)

    def close(self) -> None:
        """Let the thread end when it has tried to send everything."""
        self.is_closing = True
        self.flush()

    def run(self) -> None:
        while not (self.is_closing and self.num_handled == self.num_requested):
            with self.changed:
                self.changed.wait_for(lambda: self.num_requested > self.num_handled, self.seconds)
                num_requested = self.num_requested
            self.uploader.send()
            with self.changed:
                self.num_handled = num_requested
                self.changed.notify_all()
