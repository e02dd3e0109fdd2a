"""What became of jobs, asked of SLURM or of this machine's processes.

A job of SLURM is named as SLURM names it, `123_4`; a process `local/<host>/<pid>/<its start>`, as numbers come again.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path

from bbu_train.errors import InputError

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
AT_WORK = {"RUNNING", "SUSPENDED", "COMPLETING", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
LIVE = ("waiting", "at work")
ANSWER_SECONDS = 60
PATIENT_SECONDS = 900


class NoAnswer(InputError):
    """One of SLURM's programs failed, or said nothing in time, as happens while its controller is busy."""


class Patience:
    """For `with`, around a look that is repeated: what SLURM does not answer is said and let pass, until it has not
    answered for PATIENT_SECONDS."""

    def __init__(self) -> None:
        self.failing_since: float | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if not isinstance(error, NoAnswer):
            self.failing_since = None
            return False
        now = time.monotonic()
        self.failing_since = self.failing_since or now
        if now - self.failing_since > PATIENT_SECONDS:
            return False
        print(f"{error} Asking again.", file=sys.stderr, flush=True)
        return True


def seen() -> Callable[[str], str | None]:
    """A function from a job to "waiting" or "at work", to how it ended, or to None where that cannot be seen from here.

    SLURM is asked once, for the first of its jobs. Ask before you read what a job says of itself: one that has ended
    meanwhile has written how.
    """
    states = cache(_slurm_states)

    def job_state(job: str) -> str | None:
        if job.startswith("local/"):
            return _process_state(job)
        if not shutil.which("squeue"):
            return None
        state = states().get(job) or _accounted(job)
        return "waiting" if state in WAITING else "at work" if state in AT_WORK else state

    return job_state


def this_process(pid: int | None = None) -> str:
    pid = pid or os.getpid()
    return f"local/{socket.gethostname()}/{pid}/{_began(pid)}"


def cancel(jobs: Collection[str]) -> None:
    """Ask each to end. SLURM kills those of its jobs that do not; a process here may save first."""
    slurm = [job for job in jobs if not job.startswith("local/")]
    if slurm:
        asked("scancel", *slurm)
    for job in set(jobs) - set(slurm):
        if _process_state(job) in LIVE:
            os.kill(int(job.split("/")[2]), 15)


def asked(*command: str) -> str:
    """The answer of one of SLURM's programs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        raise NoAnswer(f"{_short(command)} failed: {error.stderr.strip() or error.stdout.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"{_short(command)} gave no answer: {error}. Is SLURM up?") from error
    return done.stdout


def _short(command: Sequence[str]) -> str:
    return " ".join(command[:4])


def _slurm_states() -> dict[str, str]:
    """Of every job that the controller remembers: all that live, and some that have ended."""
    lines = asked("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T").splitlines()
    return dict(line.split("|", 1) for line in lines if "|" in line)


def _accounted(job: str) -> str:
    """How a job ended that the controller has forgotten, where the cluster keeps accounts."""
    try:
        text = asked("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=JobID,State")
    except InputError:
        return "ended"
    rows = [line.split("|") for line in text.splitlines()]
    return next((row[1].split()[0] for row in rows if row[0] == job and len(row) > 1 and row[1].strip()), "ended")


def _process_state(job: str) -> str | None:
    _, host, pid, began = job.split("/")
    if host != socket.gethostname():
        return None
    return "at work" if began == _began(int(pid)) else "ended"


def _began(pid: int) -> str:
    """When a process started, in ticks since the machine did; nothing for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if status[0] == "Z" else status[19]
