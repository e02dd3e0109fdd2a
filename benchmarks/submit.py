"""How long a sweep of 200 cells takes from the command to the queue. Needs neither a GPU nor SLURM.

    python benchmarks/submit.py [seeds=10] [rates=10] [real=false]

Ours is what `python -m bbu_train -m hydra/launcher=slurm` does: judge the command, compose every cell, check the sweep,
say what it will take, write the ledger, submit. The check (data, coverage of groups, arithmetic of a step, in a
child process with torch) is timed apart. SLURM's programs are stand-ins that answer at once; `real=true` takes those of
the machine. Beside it, in the same process: Hydra's own sweeper with the same overrides and a task that does nothing,
which composes every cell twice, to validate it and to run it. Processor seconds are those of this process, without what
it started. Fails if this process holds torch in the end. Prints it and writes outputs/benchmarks/submit.json.
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

import hydra
from omegaconf import OmegaConf

import launchers.launch
from bbu_train.cli import main as command_line
from bbu_train.cli import overrides


def sweep(seeds: int, rates: int) -> list[str]:
    """Twice as many cells as seeds times rates."""
    swept = ",".join(f"{1 + i}e-5" for i in range(rates))
    return [f"seed=range(0,{seeds})", f"optimizer.groups.llm.lr={swept}", "head=detr,none", "data.num_train=16"]


@contextmanager
def stand_ins(num_jobs: int) -> Iterator[None]:
    """Programs of SLURM's names in front of PATH, for which all jobs wait in the queue."""
    queue = "\n".join(f"7_{i}|PENDING" for i in range(num_jobs))
    answers = {"sbatch": "Submitted batch job 7", "squeue": queue, "scontrol": "MaxArraySize = 1001"}
    before = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        for name, answer in answers.items():
            program = Path(folder) / name
            program.write_text(f"#!/bin/sh\necho '{answer}'\n")
            program.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{before}"
        yield
    os.environ["PATH"] = before


class Timed:
    """A function that adds up what its calls take: wall seconds, and those of this process's processor time."""

    def __init__(self, function: Callable):
        self.function = function
        self.wall = self.processor = 0.0

    def __call__(self, *arguments):
        wall, processor = time.perf_counter(), time.process_time()
        try:
            return self.function(*arguments)
        finally:
            self.wall += time.perf_counter() - wall
            self.processor += time.process_time() - processor


def ours(given: list[str]) -> tuple[Timed, Timed]:
    """The whole, and the check in it."""
    arguments, folder = ["-m", "hydra/launcher=slurm", *given], command_line.config_folder()

    def command() -> int:
        overrides.check(arguments, folder)
        return launchers.launch.launch(arguments, folder)

    launchers.launch.check_cells = check = Timed(launchers.launch.check_cells)
    whole = Timed(command)
    with redirect_stdout(StringIO()):  # a table of all runs
        assert whole() == 0
    return whole, check


def hydras(given: list[str]) -> Timed:
    sys.argv = ["bbu_train", "-m", *given, "hydra.sweep.dir=${outputs}"]
    folder = str(command_line.config_folder())
    application = hydra.main(version_base=overrides.VERSION_BASE, config_path=folder, config_name=overrides.CONFIG_NAME)
    whole = Timed(application(lambda cfg: None))
    whole()
    return whole


def main() -> None:
    asked = OmegaConf.merge({"seeds": 10, "rates": 10, "real": False}, OmegaConf.from_cli(sys.argv[1:]))
    given, num_cells = sweep(asked.seeds, asked.rates), 2 * asked.seeds * asked.rates
    results = Path("outputs/benchmarks/submit.json").absolute()
    with tempfile.TemporaryDirectory() as folder:
        given.append(f"outputs={folder}")
        with nullcontext() if asked.real else stand_ins(num_cells):
            whole, check = ours(given)
        peer = hydras(given)
    assert "torch" not in sys.modules
    rows = {
        "ours, without the check": (whole.wall - check.wall, whole.processor - check.processor),
        "the check": (check.wall, check.processor),
        "Hydra's sweeper": (peer.wall, peer.processor),
    }
    print(f"\n{num_cells} cells; this process holds no torch\n")
    print("| what | seconds | of the processor, here | of Hydra's |")
    print("|---|---|---|---|")
    for what, (wall, processor) in rows.items():
        print(f"| {what} | {wall:.1f} | {processor:.1f} | {processor / peer.processor:.2f} |")
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
