"""Submitting a sweep of 200 runs, compared with Hydra's own sweeper. Needs neither a GPU nor SLURM.

    python benchmarks/submit.py [seeds=10] [learning_rates=10] [real=false]

Times what `python -m bbu_train -m hydra/launcher=slurm` does between the command and the queue: validate the command,
compose every run's config, check the sweep, estimate its time, write the ledger, and submit. The check (data, parameter
groups, arithmetic of a step; a child process with torch) is timed by itself. SLURM's commands are stand-ins that answer
at once; `real=true` takes those of the machine.

The peer, in the same process, is Hydra's sweeper with the same overrides and a task that does nothing. It composes
every config twice, once to validate it and once to run it.

Processor seconds are those of this process, without child processes. Fails if this process has imported torch. Prints a
table and writes outputs/benchmarks/submit.json.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import hydra

import launchers.launch
from bbu_train.cli import arguments, overrides
from bbu_train.runtime.config_folder import config_folder


def sweep_overrides(num_seeds: int, num_learning_rates: int) -> list[str]:
    """Return the overrides of a sweep of 2 * num_seeds * num_learning_rates runs."""
    learning_rates = ",".join(f"{1 + i}e-5" for i in range(num_learning_rates))
    return [
        f"seed=range(0,{num_seeds})",
        f"optimizer.groups.llm.lr={learning_rates}",
        "head=detr,none",
        "data.num_train=16",
    ]


@contextmanager
def stand_ins(num_jobs: int) -> Iterator[None]:
    """Put stand-ins for SLURM's commands first on PATH. According to them all jobs are pending."""
    queue = "\n".join(f"7_{i}|PENDING" for i in range(num_jobs))
    answers = {"sbatch": "Submitted batch job 7", "squeue": queue, "scontrol": "MaxArraySize = 1001", "srun": ""}
    path = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        for name, answer in answers.items():
            program = Path(folder) / name
            program.write_text(f"#!/bin/sh\necho '{answer}'\n")
            program.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{path}"
        yield
    os.environ["PATH"] = path


class Timed:
    """A function that adds up the time of its calls: wall seconds and processor seconds of this process."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.wall = self.processor = 0.0

    def __call__(self, *arguments: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        try:
            return self.function(*arguments)
        finally:
            self.wall += time.perf_counter() - wall
            self.processor += time.process_time() - processor


def run_bbu_train(sweep: list[str]) -> tuple[Timed, Timed]:
    """Submit the sweep; return the timings of the whole command and of the check within it."""
    arguments, folder = ["-m", "hydra/launcher=slurm", *sweep], config_folder()

    def command() -> int:
        overrides.check(arguments, folder)
        return launchers.launch.launch(arguments, folder)

    launchers.launch.check_cells = check = Timed(launchers.launch.check_cells)
    whole = Timed(command)
    with redirect_stdout(StringIO()):  # it prints a table of all runs
        assert whole() == 0
    return whole, check


def run_hydra(sweep: list[str]) -> Timed:
    sys.argv = ["bbu_train", "-m", *sweep, "hydra.sweep.dir=${outputs}"]
    folder = str(config_folder())
    application = hydra.main(version_base=overrides.VERSION_BASE, config_path=folder, config_name=overrides.CONFIG_NAME)
    whole = Timed(application(lambda cfg: None))
    whole()
    return whole


def main() -> None:
    options = arguments.parse(sys.argv[1:], {"seeds": 10, "learning_rates": 10, "real": False})
    sweep = sweep_overrides(options.seeds, options.learning_rates)
    num_runs = 2 * options.seeds * options.learning_rates
    results = Path("outputs/benchmarks/submit.json").absolute()
    with tempfile.TemporaryDirectory() as folder:
        sweep.append(f"outputs={folder}")
        with nullcontext() if options.real else stand_ins(num_runs):
            whole, check = run_bbu_train(sweep)
        peer = run_hydra(sweep)
    assert "torch" not in sys.modules
    rows = {
        "bbu_train, without the check": (whole.wall - check.wall, whole.processor - check.processor),
        "the check": (check.wall, check.processor),
        "Hydra's sweeper": (peer.wall, peer.processor),
    }
    print(f"\n{num_runs} runs; this process has not imported torch\n")
    print("| what | seconds | relative to Hydra | processor seconds of this process | relative to Hydra |")
    print("|---|---|---|---|---|")
    for what, (wall, processor) in rows.items():
        ratios = wall / peer.wall, processor / peer.processor
        print(f"| {what} | {wall:.1f} | {ratios[0]:.2f} | {processor:.1f} | {ratios[1]:.2f} |")
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
