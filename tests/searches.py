"""A launcher for tests of searches. Its runs are real processes, but follow a formula instead of training a model.

A run begins its attempt and writes metrics.jsonl and its state as a job does. Its config decides its result: see
`value_of` and the seeds.
"""

import json
import math
import multiprocessing
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from launchers.job import Job
from launchers.job_states import local_job_id
from launchers.ledger import Attempt, Entry, Ledger
from launchers.lock import locked
from launchers.status import read_statuses

BEST, POOR = 3.0, 1.0  # weights: the formula's maximum, and below which a run continues until somebody ends it
RAISES, DIVERGES, LACKS_METRIC = 101, 102, 103  # seeds
CONFIG = """\
# @package _global_
launchers:
  _target_: searches.Formula
  num_parallel: 1
"""


FORKSERVER = multiprocessing.get_context("forkserver")


class Formula:
    """Starts runs and returns at once, as SLURM does; the controller of a search works in this process."""

    wait = True
    can_search = True
    handles_signals = False
    works_under_torchrun = False

    def __init__(self, num_parallel: int):
        self.num_parallel = num_parallel

    def check(self, ledger: Ledger) -> None:
        pass

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        with locked(ledger.folder):
            for status in read_statuses(ledger, runs):
                if status.can_start(states):
                    attempt = status.entry.add_attempt()
                    process = FORKSERVER.Process(target=run, args=(str(attempt.folder),), daemon=True)
                    process.start()
                    attempt.write("job", job=local_job_id(process.pid))
        return 0

    def start_controller(self, attempt: Attempt, ledger: Ledger, cluster: Mapping[str, Any]) -> None:
        if (preempted := Job(str(attempt.folder)).run()) is not None:
            raise preempted


def value_of(weight: float, step: int, steps: int) -> float:
    return math.exp(-((weight - BEST) ** 2)) * step / steps


def run(attempt_folder: str) -> None:
    attempt, job = Attempt(Path(attempt_folder)), local_job_id()
    if attempt.begin(job):
        return
    cfg = Entry(attempt.entry_folder).config()
    if cfg.seed == RAISES:
        attempt.fail(job, "Traceback", "it raised")
        return
    folder, weight = Path(cfg.folder), cfg.loss.weights.giou
    folder.mkdir(parents=True, exist_ok=True)
    metric = "eval/loss/total" if cfg.seed == LACKS_METRIC else "eval/ap50"
    with (folder / "metrics.jsonl").open("w") as log:
        for step in range(0, cfg.steps + 1, cfg.eval_every):
            value = "NaN" if cfg.seed == DIVERGES else value_of(weight, step, cfg.steps)
            log.write(json.dumps({"step": step, "time/logged": time.time(), metric: value}) + "\n")
            log.flush()
            if weight < POOR and step > 0:
                time.sleep(600)
    attempt.write("state", state="done", job=job)
