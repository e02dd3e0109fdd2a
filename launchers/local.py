"""Runs as processes of this machine, one each and some at a time. The command stays until the last has ended."""

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from bbu_train import preemption
from bbu_train.errors import InputError
from launchers import jobs, survey
from launchers.job import Job
from launchers.ledger import Attempt, Ledger, locked

LOG = "log.txt"


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
        """Run those that are in one of these states when it is their turn: others may be at work on the same sweep."""
        pool = ThreadPoolExecutor(self.num_parallel)
        try:
            list(pool.map(lambda run: self._run(ledger, run, states), runs))
        finally:  # after Ctrl-C, which the processes have got too
            pool.shutdown(cancel_futures=True)
        return 0

    def control(self, attempt: Attempt, ledger: Ledger, asks: Mapping[str, Any]) -> None:
        """Make a search's trials, in this process, until a signal asks it to end."""
        preemption.install()
        if (preempted := Job(str(attempt.folder)).run()) is not None:
            raise preempted

    def _run(self, ledger: Ledger, run: str, states: Collection[str]) -> None:
        gpu = None if self.shares_gpus else self.gpus.get()
        try:
            with locked(ledger.folder):
                (row,) = survey.rows(ledger, [run])
                if not row.may_start(states):
                    return
                attempt = row.entry.claim()
                process = _started(attempt, gpu)
                attempt.write("job", job=jobs.this_process(process.pid))
            print(f"{run} runs; what it says: {attempt.folder / LOG}", flush=True)
            process.wait()
            print(f"{run} has ended: {attempt.state(jobs.seen()).name}", flush=True)
        finally:
            if gpu is not None:
                self.gpus.put(gpu)


def _started(attempt: Attempt, gpu: int | None) -> subprocess.Popen:
    environment = dict(os.environ) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    command = [sys.executable, "-m", "launchers.job", str(attempt.folder)]
    with (attempt.folder / LOG).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
