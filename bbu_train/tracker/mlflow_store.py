"""Opening MLflow's store: without noise, and safely where many processes do it at once."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_SECONDS = 120  # a process holds the lock for some tenths of a second

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what fails is said here, once, and not with a traceback at every try
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the next flush is the next try
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; MLflow waits 120 and tries 7 times
}
"""MLflow reads these when it is imported, and they must not print over the progress bar. The user's own come first."""


TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Without this tag the page of an experiment opens as that of a language-model application, with judges and prompts."""

_in_database = threading.RLock()
# A process that is forked in the middle of a transaction would have half of it: forks wait for its end.
os.register_at_fork(
    before=_in_database.acquire, after_in_parent=_in_database.release, after_in_child=_in_database.release
)


def be_quiet() -> None:
    """To be called before mlflow is imported. The settings do not replace the user's own."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each try


def absolute_uri(uri: str) -> str:
    """SQLite's `sqlite:///relative/path` as `sqlite:////whole/path`, so that it holds from any folder."""
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{Path(path).absolute()}"


@contextmanager
def transaction(uri: str) -> Iterator[None]:
    """Around each call of a client: no process is forked inside, if the store is a database that this process opens.

    A server that hangs holds up no fork, and so no data worker.
    """
    if uri.startswith("http"):
        yield
    else:
        with _in_database:
            yield


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """One process at a time, if the store is SQLite: to make it, or what must exist once in it. Forks wait for the end.

    They do not wait for the lock, which another process may hold.
    """
    if not uri.startswith("sqlite:///"):
        with transaction(uri):
            yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    lock, deadline = FileLock(f"{database}.lock"), time.monotonic() + LOCK_SECONDS
    while True:
        with transaction(uri):
            if _locked(lock, deadline):
                try:
                    yield
                finally:
                    lock.release()
                return
        time.sleep(0.02)


def _locked(lock: FileLock, deadline: float) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if time.monotonic() > deadline:
            raise
        return False
    return True


def open_client(uri: str):
    """A client whose store exists. Processes that make one SQLite store at once break it for good: one at a time."""
    from mlflow import MlflowClient

    with alone(uri):
        client = MlflowClient(uri)
        if uri.startswith("sqlite:///"):
            client.search_experiments(max_results=1)
        return client


def find_or_create_experiment(client, name: str, artifacts: Path | None) -> str:
    """The experiment of that name. One that was deleted by hand is restored, for MLflow keeps its name."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            location = artifacts and artifacts.as_uri()
            return client.create_experiment(name, artifact_location=location, tags=TRAINING)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id
