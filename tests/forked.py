"""Processes that start in milliseconds: each is forked from a fresh, single-threaded server of the test process.

The server imports everything once. Forked processes share no thread and no lock with the tests, and jaxtyping's checks
are off in them.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from bbu_train.tracker.mlflow_store import silence_mlflow

silence_mlflow()  # MLflow reads the environment when the server imports it
processes = multiprocessing.get_context("forkserver")
MLFLOW = ["bbu_train.tracker.mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.tracking.rest_store"]
TRAINING = ["bbu_train.train", "bbu_train.model.qwen25vl", "launchers.launch", "matplotlib.backends.backend_agg"]
processes.set_forkserver_preload(["pytest", "bbu_train.checkpoint.local", "launchers.job", *MLFLOW, *TRAINING])


def start_program(
    arguments: Sequence[str],
    output: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start `python -m <arguments>` in a session of its own, after a call of `before`.

    It writes stdout and stderr into `output`.
    """
    process = processes.Process(target=_run_program, args=(list(arguments), output, dict(environment or {}), before))
    process.start()
    return process


def run_program(arguments: Sequence[str], output: Path, before: Callable[[], None] | None = None) -> str:
    """Run it to its end and return what it wrote. Raise AssertionError if it failed."""
    process = start_program(arguments, output, before=before)
    process.join()
    text = output.read_text()
    assert process.exitcode == 0, text
    return text


def _run_program(
    arguments: Sequence[str], output: Path, environment: Mapping[str, str], before: Callable[[], None] | None
) -> None:
    os.setsid()
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    if before is not None:
        before()
    module, *sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
