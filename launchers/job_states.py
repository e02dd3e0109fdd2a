"""The state of jobs, as SLURM or this machine's process table tells it.

A SLURM job has SLURM's own id, such as `123_4`. A local process has the id `local/<host>/<pid>/<start time>`: process
numbers are reused, so the number alone does not identify it.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path

from bbu_train.errors import InputError

PENDING, RUNNING = "pending", "running"
ACTIVE = (PENDING, RUNNING)
SLURM_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
SLURM_RUNNING = {"RUNNING", "SUSPENDED", "COMPLETING", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
COMMAND_TIMEOUT_SECONDS = 60
RETRY_SECONDS = 900


class SlurmUnavailable(InputError):
    """A SLURM command failed or timed out, as happens while the SLURM controller is busy."""


class RetryTransient:
    """A context manager for the body of a polling loop: it suppresses SlurmUnavailable for up to RETRY_SECONDS.

    Each suppressed error is printed. The time starts at the first of consecutive failures.
    """

    def __init__(self) -> None:
        self.failing_since: float | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if not isinstance(error, SlurmUnavailable):
            self.failing_since = None
            return False
        now = time.monotonic()
        self.failing_since = self.failing_since or now
        if now - self.failing_since > RETRY_SECONDS:
            return False
        print(f"{error} Trying again.", file=sys.stderr, flush=True)
        return True


def lookup() -> Callable[[str], str | None]:
    """Return a function from a job's id to its state: PENDING, RUNNING, how it ended, or None if this host cannot tell.

    SLURM is queried once, at the first SLURM job. Ask for a job's state before reading the files that the job writes:
    a job that ends in between has then already written its result.
    """
    slurm_states = cache(_query_slurm)

    def job_state(job: str) -> str | None:
        if job.startswith("local/"):
            return _process_state(job)
        if not shutil.which("squeue"):
            return None
        state = slurm_states().get(job) or _query_accounting(job)
        return PENDING if state in SLURM_PENDING else RUNNING if state in SLURM_RUNNING else state

    return job_state


def local_job_id(pid: int | None = None) -> str:
    """Return the job id of a process of this host, by default of this process.

    Without a start time if the process has ended already.
    """
    pid = pid or os.getpid()
    return f"local/{socket.gethostname()}/{pid}/{_start_ticks(pid)}"


def cancel(jobs: Collection[str]) -> None:
    """Ask every job to end. SLURM kills a job that does not; a local process may save first."""
    slurm = [job for job in jobs if not job.startswith("local/")]
    if slurm:
        run_slurm_command("scancel", *slurm)
    for job in set(jobs) - set(slurm):
        if _process_state(job) in ACTIVE:
            os.kill(int(job.split("/")[2]), signal.SIGTERM)


def run_slurm_command(*command: str) -> str:
    """Return the stdout of a SLURM program. Raises SlurmUnavailable if it fails or takes longer than a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        raise SlurmUnavailable(f"{_shorten(command)} failed: {error.stderr.strip() or error.stdout.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmUnavailable(f"{_shorten(command)} gave no answer: {error}. Is SLURM up?") from error
    return done.stdout


def _shorten(command: Sequence[str]) -> str:
    return " ".join(command[:4])


def _query_slurm() -> dict[str, str]:
    """Return the state of every job that the SLURM controller remembers: all unfinished ones, and some finished."""
    output = run_slurm_command("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T")
    return dict(line.split("|", 1) for line in output.splitlines() if "|" in line)


def _query_accounting(job: str) -> str:
    """Return how a job ended that the controller has forgotten, or "ended" if the cluster keeps no accounts."""
    options = ("--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=JobID,State")
    try:
        output = run_slurm_command("sacct", *options)
    except InputError:
        return "ended"
    fields = [line.split("|") for line in output.splitlines()]
    return next((row[1].split()[0] for row in fields if row[0] == job and len(row) > 1 and row[1].strip()), "ended")


def _process_state(job: str) -> str | None:
    _, host, pid, start_ticks = job.split("/")
    if host != socket.gethostname():
        return None
    return RUNNING if start_ticks and start_ticks == _start_ticks(int(pid)) else "ended"


def _start_ticks(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; the empty string if it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
