"""Opening MLflow's store quietly, and safely where many processes do it at once."""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from filelock import FileLock, Timeout

from bbu_train.tracker.mlflow_view import KIND

if TYPE_CHECKING:
    import mlflow

SQLITE = "sqlite:///"
CONNECT_SECONDS = 3  # to reach a server: MLflow itself would wait for 20 s, twice
LOCK_TIMEOUT_SECONDS = 120  # a process holds the lock for a few tenths of a second

QUIET_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # the tracker reports a failure itself, once, without a traceback
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the next flush tries again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; MLflow's defaults are 120 seconds and 7 retries
}
"""MLflow reads these variables when it is imported. Its messages would break the progress bar."""

_fork_lock = threading.RLock()
# A process that is forked in the middle of a client's call would inherit half of it, so forks wait for its end.
os.register_at_fork(
    before=_fork_lock.acquire,
    after_in_parent=_fork_lock.release,
    after_in_child=_fork_lock.release,
)


def silence_mlflow() -> None:
    """Set QUIET_ENVIRONMENT, where the user has not set a variable. Call it before mlflow is imported."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns at each try


def absolute_uri(uri: str) -> str:
    """Return `sqlite:///path` with the path absolute and quoted; other URIs are unchanged.

    In the config the path is literal, whatever characters it has. In a URI `?` begins options and `%20` is a blank.
    """
    if not uri.startswith(SQLITE):
        return uri
    path = str(Path(uri.removeprefix(SQLITE)).absolute())
    return SQLITE + re.sub("%(?=[0-9A-Fa-f]{2})", "%25", path).replace("?", "%3F")


def database(uri: str) -> Path | None:
    """Return the file of an SQLite store, given its quoted URI; None for other stores."""
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


@contextmanager
def no_fork(uri: str) -> Iterator[None]:
    """Let no process be forked within a client's call, if this process itself opens the store's database.

    With a server, forks do not wait: a server that hangs must not delay a data worker.
    """
    if uri.startswith("http"):
        yield
    else:
        with _fork_lock:
            yield


@contextmanager
def exclusive_access(uri: str) -> Iterator[None]:
    """Let only one process at a time create an SQLite store, or an entry that must be unique in it.

    The processes share a lock file beside the database. While this process holds the lock it cannot be forked, as in
    `no_fork`; while it waits for another process to release the lock, it can be.
    """
    if (file := database(uri)) is None:
        with no_fork(uri):
            yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    lock, deadline = FileLock(f"{file}.lock"), time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        with no_fork(uri):
            if _try_to_lock(lock, deadline):
                try:
                    yield
                finally:
                    lock.release()
                return
        time.sleep(0.02)


def _try_to_lock(lock: FileLock, deadline: float) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if time.monotonic() > deadline:
            raise
        return False
    return True


def require_reachable(uri: str) -> None:
    """Raise OSError if nothing listens at the address of a server. Other stores, and a proxy, are not tried."""
    parts = urlsplit(uri)
    ports = {"http": 80, "https": 443}
    if parts.scheme not in ports or parts.hostname is None:
        return
    if parts.scheme not in getproxies() or proxy_bypass(parts.hostname):
        address = parts.hostname, parts.port or ports[parts.scheme]
        socket.create_connection(address, CONNECT_SECONDS).close()


def open_client(uri: str) -> "mlflow.MlflowClient":
    """Return a client, and create its store if it does not exist. Raises OSError if nothing listens at a server's URI.

    Processes that create one SQLite store at the same time would corrupt it, so they do it one at a time.
    """
    from mlflow import MlflowClient

    require_reachable(uri)
    with exclusive_access(uri), _without_folder_of_quoted_path(uri):
        if (file := database(uri)) is not None:
            file.touch()  # SQLite would make it writable for its owner alone, whatever the umask is
        client = MlflowClient(uri)
        if file is not None:
            client.search_experiments(max_results=1)
        return client


@contextmanager
def _without_folder_of_quoted_path(uri: str) -> Iterator[None]:
    """Remove the empty folders that MLflow makes when it takes the path of a quoted URI for that of the database."""
    quoted = Path(uri.removeprefix(SQLITE))
    new = [] if quoted == (database(uri) or quoted) else [each for each in quoted.parents if not each.exists()]
    yield
    for folder in new:
        with suppress(OSError):
            folder.rmdir()


def find_or_create_experiment(client: "mlflow.MlflowClient", name: str, artifacts: Path | None) -> str:
    """Return the id of the experiment of that name. A deleted one is restored, because MLflow reserves its name."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            location = artifacts and artifacts.as_uri()
            return client.create_experiment(name, artifact_location=location, tags=dict([KIND]))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id
