"""A launcher for tests of searches, whose runs are real processes that follow a formula instead of training a model.

`python -m searches <attempt folder>` is such a run: it begins its attempt as a job does, and writes metrics.jsonl and
its state as one does. What becomes of it is in its config: see `value_of` and the seeds.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from launchers import jobs, status
from launchers.job import Job
from launchers.ledger import Attempt, Entry, Ledger, locked

BEST, POOR = 3.0, 1.0  # weights: where the formula has its top, and below which a run goes on until somebody ends it
RAISES, DIVERGES, IS_WITHOUT = 101, 102, 103  # seeds
CONFIG = """\
# @package _global_
launchers:
  _target_: searches.Formula
  num_parallel: 1
"""


class Formula:
    """Starts runs and returns at once, as SLURM does; the controller of a search works in this process."""

    wait = True

    def __init__(self, num_parallel: int):
        self.num_parallel = num_parallel

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        with locked(ledger.folder):
            for row in status.rows(ledger, runs):
                if row.may_start(states):
                    attempt = row.entry.claim()
                    process = subprocess.Popen([sys.executable, "-m", "searches", str(attempt.folder)])
                    attempt.write("job", job=jobs.this_process(process.pid))
        return 0

    def control(self, attempt: Attempt, ledger: Ledger, asks: Mapping[str, Any]) -> None:
        if (preempted := Job(str(attempt.folder)).run()) is not None:
            raise preempted


def value_of(weight: float, step: int, steps: int) -> float:
    return math.exp(-((weight - BEST) ** 2)) * step / steps


def run(attempt: Attempt) -> None:
    job = jobs.this_process()
    if attempt.begin(job):
        return
    cfg = Entry(attempt.entry_folder).config()
    if cfg.seed == RAISES:
        attempt.fail(job, "Traceback", "it raised")
        return
    folder, weight = Path(cfg.folder), cfg.loss.weights.giou
    folder.mkdir(parents=True, exist_ok=True)
    metric = "eval/loss/total" if cfg.seed == IS_WITHOUT else "eval/ap50"
    with (folder / "metrics.jsonl").open("w") as log:
        for step in range(0, cfg.steps + 1, cfg.eval_every):
            value = "NaN" if cfg.seed == DIVERGES else value_of(weight, step, cfg.steps)
            log.write(json.dumps({"step": step, "time/logged": time.time(), metric: value}) + "\n")
            log.flush()
            if weight < POOR and step > 0:
                time.sleep(600)
    attempt.write("state", state="done", job=job)


if __name__ == "__main__":
    run(Attempt(Path(sys.argv[1])))
