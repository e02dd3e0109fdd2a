"""Processes that start in milliseconds: each is forked from a fresh, single-threaded server of the test process.

The server imports everything once. Forked processes share no thread and no lock with the tests, and jaxtyping's checks
are off in them.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# The server finds preloaded.py by this variable only: Python 3.11 does not give it sys.path.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(":")
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["preloaded"])


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


def run_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in two processes, and raise what either of them raises."""
    import torch.multiprocessing

    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def run_program(arguments: Sequence[str], output: Path, before: Callable[[], None] | None = None) -> str:
    """Run `python -m <arguments>` to its end and return its output. Raise AssertionError if it failed."""
    process = start_program(arguments, output, before=before)
    process.join()
    text = output.read_text()
    assert process.exitcode == 0, text
    return text


def run_command(
    command: Sequence[str], *, input: str, stdout: int, text: bool, check: bool
) -> subprocess.CompletedProcess[str]:
    """Stand in for `subprocess.run([python, "-m", ...], input=..., stdout=PIPE, text=True, check=False)`.

    stderr is discarded.
    """
    assert (stdout, text, check) == (subprocess.PIPE, True, False)
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder) / "stdin", Path(folder) / "stdout"
        given.write_text(input)
        process = start_program(command[2:], written, before=partial(_redirect, given))
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode or 0, written.read_text())


def _redirect(stdin: Path) -> None:
    sys.stdin = stdin.open()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


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
    sys.orig_argv = [sys.executable, "-m", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
