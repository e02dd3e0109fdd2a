"""The sweep "s" on the SLURM cluster of the tests: its commands, and the state of its runs."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import whole_runs

from bbu_train.cli.overrides import options_first
from launchers.cells import compose
from launchers.ledger import Ledger

Result = TypeVar("Result")

SWEEP = ("-m", "hydra/launcher=slurm", "sweep=s", "cluster.time_minutes=10")
SMALL = ("experiment=smoke", *whole_runs.SMALL_DATA, *whole_runs.SMALL_HEAD, "sampler.num_samples=2", "threads=1")
SUBMIT = """
import sys
from bbu_train.cli.main import run_command
from bbu_train.runtime.config_folder import config_folder
from launchers.launch import launch
code = run_command(None, config_folder(), launch, None)
assert "torch" not in sys.modules
sys.exit(code)
"""


class Sweep:
    """The sweep "s" in a folder of its own."""

    def __init__(self, environment: dict[str, str], folder: Path):
        self.environment, self.folder = environment, folder
        self.outputs = folder / "outputs/s"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            arguments,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_submission(self, *overrides: str) -> subprocess.Popen[str]:
        return self.start(sys.executable, "-c", SUBMIT, *SWEEP, *SMALL, *overrides)

    def submit(self, *overrides: str) -> str:
        return read_output(self.start_submission(*overrides))

    def record(self, *overrides: str) -> None:
        """Write the ledger as a submission does, without its checks. `launchers resume` then submits the runs."""
        arguments = options_first([*SWEEP, f"outputs={self.outputs.parent}", *SMALL, *overrides])
        Ledger(self.outputs / "ledger").add(compose(arguments, whole_runs.CONF))

    def run(self, *arguments: str) -> str:
        return read_output(self.start(*arguments))

    def launchers(self, command: str) -> str:
        return self.run(sys.executable, "-m", "launchers", *command.split(), "s")

    def jobs(self) -> list[str]:
        return self.run("squeue", "--noheader", "--array").splitlines()

    def wait_until_over(self) -> None:
        wait_for(lambda: not self.jobs(), poll_seconds=0.2)

    def states(self) -> Counter[str]:
        lines = [line.split() for line in self.launchers("status").splitlines()]
        return Counter(line[1] for line in lines if len(line) > 4 and line[3].endswith("/6"))

    def attempts(self) -> dict[str, list[Path]]:
        """Return the attempts at each run, by the last override of the run."""
        cells = sorted((self.outputs / "ledger").glob("*/cell.json"))
        return {json.loads(cell.read_text())["overrides"][-1]: sorted(cell.parent.glob("0*")) for cell in cells}


def read_output(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


def wait_for(condition: Callable[[], Result], seconds: float = 300, poll_seconds: float = 0.05) -> Result:
    """Return the first true result of `condition`."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"waited for {seconds} s"
        time.sleep(poll_seconds)
    return result


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}
