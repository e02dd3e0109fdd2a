"""Runs as processes of this machine, one each and some at a time. The command stays until the last has ended."""

import os
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from bbu_train.errors import InputError
from bbu_train.runtime import preemption
from launchers import jobs, status
from launchers.job import Job
from launchers.ledger import Attempt, Ledger, locked

LOG = "log.txt"
POLL_SECONDS = 0.5  # between looks at whether a signal came


class Local:
    """`num_parallel` runs at a time, each of which sees one of `gpus`, or all of them."""

    wait = True  # its runs have ended when `start` returns, but others may be at work on the same sweep

    def __init__(self, num_parallel: int, gpus: Sequence[int] | None):
        if num_parallel < 1 or (gpus is not None and not gpus):
            raise InputError(f"launchers.num_parallel={num_parallel} launchers.gpus={gpus}: at least one of each.")
        self.num_parallel = min(num_parallel, len(gpus)) if gpus else num_parallel
        self.gpus: SimpleQueue[int] = SimpleQueue()
        for gpu in gpus or ():
            self.gpus.put(gpu)
        self.shares_gpus = gpus is None

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        """Run those that are in one of these states when it is their turn: others may be at work on the same sweep.

        When one of them is cancelled, or a signal asks it or this process to end, none begins any more.
        """
        pool, is_over = ThreadPoolExecutor(self.num_parallel), threading.Event()
        try:
            ends = [_result(its) for its in [pool.submit(self._run, ledger, run, states, is_over) for run in runs]]
        finally:  # after Ctrl-C, which the processes have got too
            pool.shutdown(cancel_futures=True)
        return os.EX_TEMPFAIL if preemption.requested() or "preempted" in ends else 0

    def control(self, attempt: Attempt, ledger: Ledger, asks: Mapping[str, Any]) -> None:
        """Make a search's trials, in this process, until a signal asks it to end."""
        preemption.install()
        if (preempted := Job(str(attempt.folder)).run()) is not None:
            raise preempted

    def _run(self, ledger: Ledger, run: str, states: Collection[str], is_over: threading.Event) -> str | None:
        """The state in which the run has ended, if it was started."""
        gpu = None if self.shares_gpus else self.gpus.get()
        try:
            with locked(ledger.folder):
                (row,) = status.rows(ledger, [run])
                if is_over.is_set() or preemption.requested() or not row.may_start(states):
                    return None
                attempt = row.entry.claim()
                process = _started(attempt, gpu)
                attempt.write("job", job=jobs.this_process(process.pid))
            print(f"{run} runs; what it says: {attempt.folder / LOG}", flush=True)
            _wait_for(process)
            state = attempt.state(jobs.seen()).name
            if state in ("preempted", "cancelled"):
                is_over.set()
            print(f"{run} has ended: {state}", flush=True)
            return state
        finally:
            if gpu is not None:
                self.gpus.put(gpu)


def _result(running: Future) -> Any:
    """Looks in between: what waits without end would not notice a signal."""
    while not running.done():
        futures.wait([running], POLL_SECONDS)
    return running.result()


def _wait_for(process: subprocess.Popen) -> None:
    """Until it has ended. What asks this process to end, it asks too."""
    while not preemption.requested():
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
    process.terminate()
    process.wait()


def _started(attempt: Attempt, gpu: int | None) -> subprocess.Popen:
    environment = dict(os.environ) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    command = [sys.executable, "-m", "launchers.job", str(attempt.folder)]
    with (attempt.folder / LOG).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
