"""Commands about a sweep on the SLURM that the tests start, and what became of its runs."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import whole_runs

from bbu_train.cli.overrides import in_hydras_order
from launchers.cells import compose
from launchers.ledger import Ledger

SWEEP = ("-m", "hydra/launcher=slurm", "sweep=s", "cluster.time_minutes=10")
SMALL = ("experiment=smoke", *whole_runs.SMALL_DATA, *whole_runs.SMALL_HEAD, "sampler.num_samples=2", "threads=1")
SUBMIT = """
import sys
from bbu_train.cli import main as command_line
from launchers.launch import launch
code = command_line.run(None, command_line.config_folder(), launch)
assert "torch" not in sys.modules
sys.exit(code)
"""


class Sweep:
    """The sweep "s" in a folder of its own."""

    def __init__(self, environment: dict[str, str], folder: Path):
        self.environment, self.folder = environment, folder
        self.outputs = folder / "outputs/s"

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            arguments,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submitting(self, *overrides: str) -> subprocess.Popen:
        return self.start(sys.executable, "-c", SUBMIT, *SWEEP, *SMALL, *overrides)

    def submit(self, *overrides: str) -> str:
        return said_by(self.submitting(*overrides))

    def write_down(self, *overrides: str) -> None:
        """What a command does before it submits, but for the checks: `launchers resume` submits then."""
        given = in_hydras_order([*SWEEP, f"outputs={self.outputs.parent}", *SMALL, *overrides])
        cells = compose(given, whole_runs.CONF)
        Ledger(self.outputs / "ledger").add(cells)

    def says(self, *arguments: str) -> str:
        return said_by(self.start(*arguments))

    def launchers(self, command: str) -> str:
        return self.says(sys.executable, "-m", "launchers", *command.split(), "s")

    def jobs(self) -> list[str]:
        return self.says("squeue", "--noheader", "--array").splitlines()

    def wait_until_over(self) -> None:
        wait_for(lambda: not self.jobs())

    def states(self) -> Counter:
        lines = [line.split() for line in self.launchers("status").splitlines()]
        return Counter(line[1] for line in lines if len(line) > 4 and line[3].endswith("/6"))

    def attempts(self) -> dict[str, list[Path]]:
        """The attempts at each run, by its overrides."""
        cells = sorted((self.outputs / "ledger").glob("*/cell.json"))
        return {json.loads(cell.read_text())["overrides"][-1]: sorted(cell.parent.glob("0*")) for cell in cells}


def said_by(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0, text
    return text


def wait_for(what: Callable[[], object], seconds: float = 300):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited for {seconds} s"
        time.sleep(0.1)
    return found


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}
