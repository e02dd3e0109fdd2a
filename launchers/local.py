"""The launcher that gives each run a process of this machine, several at a time, and waits until all have ended."""

import os
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from bbu_train.errors import INTERRUPTED, InputError
from bbu_train.runtime import preemption
from launchers import job_states
from launchers.job import Job
from launchers.ledger import Attempt, Ledger
from launchers.lock import locked
from launchers.status import read_statuses

Result = TypeVar("Result")

LOG = "log.txt"
NOTICE = (
    "Ctrl-C: no more runs start; those that train end after their step and save it. Ctrl-C again ends them at once."
)
SIGNAL_POLL_SECONDS = 0.5  # how often a thread that waits looks for a signal


class Local:
    """`num_parallel` runs at a time. Each sees one of `gpus`; if `gpus` is None, each sees all."""

    wait = True  # its own runs have ended when `start` returns, but other commands may work on the same sweep
    can_search = True
    handles_signals = True
    works_under_torchrun = False

    def __init__(self, num_parallel: int, gpus: Sequence[int] | None):
        if num_parallel < 1 or (gpus is not None and not gpus):
            raise InputError(f"launchers.num_parallel={num_parallel} launchers.gpus={gpus}: at least one of each.")
        self.num_parallel = min(num_parallel, len(gpus)) if gpus else num_parallel
        self.shares_gpus = gpus is None
        self.free_gpus: SimpleQueue[int] = SimpleQueue()
        for gpu in gpus or ():
            self.free_gpus.put(gpu)

    def check(self, ledger: Ledger) -> None:
        """Any ledger will do."""

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        """Run `runs`. A run is skipped if, when its turn comes, its state is not one of `states`.

        Another command that works on the same sweep may have started it meanwhile.

        No further run starts once a run is cancelled or a signal asks a run or this process to end.
        """
        pool, is_over = ThreadPoolExecutor(self.num_parallel), threading.Event()
        with _ending_runs(ledger):
            try:
                running = [pool.submit(self._run, ledger, run, states, is_over) for run in runs]
                end_states = [_wait_for_result(future) for future in running]
            finally:  # also after a second Ctrl-C, which the children have received too
                pool.shutdown(cancel_futures=True)
        if preemption.signal_name() == "SIGINT":
            return INTERRUPTED
        return os.EX_TEMPFAIL if preemption.requested() or "preempted" in end_states else 0

    def start_controller(self, attempt: Attempt, ledger: Ledger, cluster: Mapping[str, Any]) -> None:
        """Run the controller in this process until a signal asks it to end. `cluster` is not used."""
        preemption.install()
        with _ending_runs(ledger):
            preempted = Job(str(attempt.folder)).run()
        if preempted is not None:
            raise preempted

    def _run(self, ledger: Ledger, run: str, states: Collection[str], is_over: threading.Event) -> str | None:
        """Run one run in a child process; return its state at the end, or None if it was not started."""
        gpu = None if self.shares_gpus else self.free_gpus.get()
        try:
            with locked(ledger.folder):
                (status,) = read_statuses(ledger, [run])
                if is_over.is_set() or preemption.requested() or not status.can_start(states):
                    return None
                attempt = status.entry.add_attempt()
                process = _start_process(attempt, gpu)
                attempt.write("job", job=job_states.local_job_id(process.pid))
            print(f"{run} is running. Log: {attempt.folder / LOG}", flush=True)
            _wait_or_terminate(process)
            state = attempt.state(job_states.lookup()).name
            if state in ("preempted", "cancelled"):
                is_over.set()
            print(f"{run} has ended: {state}", flush=True)
            return state
        finally:
            if gpu is not None:
                self.free_gpus.put(gpu)


@contextmanager
def _ending_runs(ledger: Ledger) -> Iterator[None]:
    """Let the first Ctrl-C set the flag. A second one raises KeyboardInterrupt, which says where it ended each run."""
    before = {entry.run: entry.newest_attempt() for entry in ledger.entries()}
    try:
        with preemption.signals_set_flag(lambda: NOTICE):
            yield
    except KeyboardInterrupt:
        ended = []
        for status in read_statuses(ledger):
            attempt, earlier = status.entry.newest_attempt(), before.get(status.entry.run)
            is_new = attempt is not None and (earlier is None or attempt.number > earlier.number)
            if is_new and status.state.name in ("cancelled", "preempted", "lost"):
                ended.append(f"\n  {status.entry.run}: {status.state.reason}")
        text = f"Interrupted: the runs that were under way have ended.{''.join(ended)}\n"
        raise KeyboardInterrupt(f"{text}The same command resumes the sweep.") from None


def _wait_for_result(future: Future[Result]) -> Result:
    """Return a future's result. The wait is in short pieces: a main thread that blocks does not handle signals."""
    while not future.done():
        futures.wait([future], SIGNAL_POLL_SECONDS)
    return future.result()


def _wait_or_terminate(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has ended. If a signal asks this process to end, ask the child to end too."""
    while not preemption.requested():
        try:
            process.wait(SIGNAL_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
    process.terminate()
    process.wait()


def _start_process(attempt: Attempt, gpu: int | None) -> subprocess.Popen[bytes]:
    environment = dict(os.environ) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    command = [sys.executable, "-m", "launchers.job", str(attempt.folder)]
    with (attempt.folder / LOG).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
