"""MLflow: the same rows, where runs can be compared. It may be slow or out of reach: training does not wait for it."""

import json
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.tracker.mlflow_run import StoredRun
from bbu_train.tracker.mlflow_store import absolute_uri, be_quiet

UNSENT = "mlflow_unsent.json"
LOGGER = logging.getLogger(__name__)


class Mlflow:
    """A thread of its own sends what metrics.jsonl has, which the JSONL tracker writes before (`StoredRun`).

    Only the start and the end of a run wait for the store, and no longer than `wait_seconds`. A run that ends with
    something unsent leaves <folder>/mlflow_unsent.json; `python -m bbu_train.replay` sends it, and so does whoever
    resumes the run.
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
        flush_values: int,
        flush_seconds: float,
        wait_seconds: float,
    ):
        self.folder = Path(folder).absolute()
        self.uri = absolute_uri(uri)
        self.flush_values = flush_values
        self.wait_seconds = wait_seconds
        self.num_values = 0  # since the last flush
        self.stored = StoredRun(
            folder=self.folder,
            uri=self.uri,
            artifacts=None if artifacts is None else Path(artifacts).absolute(),
            experiment=experiment,
            sweep=sweep if in_sweep else None,
            name=title or run,
            tags={} if identity is None else {"identity": identity},
            parameters=dict(override.split("=", 1) for override in overrides),
            retry_seconds=flush_seconds,
        )
        self.sender = Sender(self.stored, flush_seconds)

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
        import mlflow  # noqa: F401

        (self.folder / UNSENT).unlink(missing_ok=True)
        self.stored.files = [self.folder / "config.yaml"]
        self.sender.start()
        self.sender.flush()
        self.sender.wait(self.wait_seconds)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.num_values += len(metrics)
        if self.num_values >= self.flush_values:
            self.num_values = 0
            self.sender.flush()

    def artifact(self, path: Path) -> None:
        self.stored.files.append(Path(path).absolute())
        self.sender.flush()

    def close(self, state: str) -> None:
        """Says first what is to be sent: a kill while it is being sent then loses nothing of it."""
        self.stored.ending = ending = state, int(1000 * time.time())
        files = [os.path.relpath(file, self.folder) for file in list(self.stored.files)]
        atomic_write(self.folder / UNSENT, json.dumps({"ending": ending, "files": files}))
        self.sender.close()
        if self.sender.wait(self.wait_seconds) and self.stored.failure is None:
            (self.folder / UNSENT).unlink()
            return
        LOGGER.warning(
            "MLflow (%s) lacks the end of this run, with %d values: %s. metrics.jsonl has every value. When MLflow "
            "answers, send what is missing: python -m bbu_train.replay %s",
            self.uri,
            self.stored.num_unsent(),
            self.stored.failure or f"no answer within {self.wait_seconds} seconds",
            shlex.quote(str(self.folder)),
        )

    def replay(self) -> bool:
        """Send what a run that has ended left unsent; whether MLflow has all of it now. Waits for the store."""
        be_quiet()
        unsent = json.loads((self.folder / UNSENT).read_text())
        state, time_ms = unsent["ending"]
        self.stored.ending = state, time_ms
        self.stored.files = [self.folder / file for file in unsent["files"]]
        if not self.stored.send():
            return False
        (self.folder / UNSENT).unlink()
        return True


class Sender(threading.Thread):
    """Sends every `seconds`, and when asked to. A daemon: a store that hangs does not keep the process alive."""

    def __init__(self, stored: StoredRun, seconds: float):
        super().__init__(name="mlflow", daemon=True)
        self.stored = stored
        self.seconds = seconds
        self.changed = threading.Condition()
        self.asked = self.answered = 0
        self.closing = False

    def flush(self) -> None:
        with self.changed:
            self.asked += 1
            self.changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Whether all that was asked for has been tried within so many seconds."""
        with self.changed:
            asked = self.asked
            return self.changed.wait_for(lambda: self.answered >= asked, seconds)

    def close(self) -> None:
        self.closing = True
        self.flush()

    def run(self) -> None:
        while not (self.closing and self.answered == self.asked):
            with self.changed:
                self.changed.wait_for(lambda: self.asked > self.answered, self.seconds)
                asked = self.asked
            self.stored.send()
            with self.changed:
                self.answered = asked
                self.changed.notify_all()
