"""Sweeps on a real SLURM, which slurm_cluster.sh starts on this machine where Debian's packages of it are installed."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("slurm_cluster.sh")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason="no SLURM here: apt-get install munge slurmctld slurmd slurm-client"),
    pytest.mark.skipif(os.geteuid() != 0, reason="SLURM's daemons are started as root"),
    pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed"),
]
SMALL = ("experiment=smoke", "tracker=jsonl", "threads=1", "data.num_train=24", "data.num_validation=4")
SUBMIT = """
import sys
from bbu_train import command_line
from launchers.launch import launch
code = command_line.run(None, command_line.config_folder(), launch)
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.fixture(scope="module")
def cluster():
    """The environment in which commands find the cluster."""
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # sockets need a short path that all may enter
    folder.chmod(0o755)
    command = ["bash", str(SCRIPT), str(folder), str(20000 + os.getpid() % 10000 * 3)]
    try:
        subprocess.run([*command, "up"], check=True, timeout=120)
        path = f"{folder}/bin:{os.environ['PATH']}"
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        yield {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": path, "PYTHONPATH": paths}
    finally:
        subprocess.run([*command, "down"], check=False, timeout=120)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sweep(cluster, tmp_path):
    return Sweep(cluster, tmp_path)


class Sweep:
    """Commands about the sweep "s" in a folder of its own."""

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
        launched = ("-m", "hydra/launcher=slurm", "sweep=s", "cluster.time_minutes=10", "cluster.grace_seconds=30")
        return self.start(sys.executable, "-c", SUBMIT, *launched, *SMALL, *overrides)

    def says(self, *arguments: str) -> str:
        process = self.start(*arguments)
        text = process.communicate(timeout=120)[0]
        assert process.returncode == 0, text
        return text

    def launchers(self, command: str) -> str:
        return self.says(sys.executable, "-m", "launchers", *command.split(), "s")

    def jobs(self) -> list[str]:
        return self.says("squeue", "--noheader", "--array").splitlines()

    def is_over(self) -> bool:
        return not self.jobs()

    def states(self) -> Counter:
        lines = [line.split() for line in self.launchers("status").splitlines()]
        return Counter(line[1] for line in lines if len(line) > 4 and line[3].endswith("/6"))

    def attempts(self) -> dict[str, list[Path]]:
        """The attempts at each run, by its overrides."""
        cells = sorted((self.outputs / "ledger").glob("*/cell.json"))
        return {json.loads(cell.read_text())["overrides"][-1]: sorted(cell.parent.glob("0*")) for cell in cells}


def wait_for(what: Callable[[], object], seconds: float = 90):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited for {seconds} s"
        time.sleep(0.1)
    return found


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def test_a_sweep_that_is_struck_in_every_way_is_done_once_after_resume(sweep):
    rates = ["1e-3", "2e-3", "3e-3", "1e30", "4e-3", "5e-3", "6e-3", "7e-3"]
    process = sweep.submitting("cluster.max_parallel=4", f"optimizer.groups.llm.lr={','.join(rates)}")
    says = process.communicate(timeout=120)[0]
    assert process.returncode == 0, says
    assert "Submitted 8 of 8 runs" in says
    by_rate = {float(text.partition("=")[2]): its[0] for text, its in sweep.attempts().items()}
    limited, preempted, killed, bad = (by_rate[float(rate)] for rate in rates[:4])

    def hang(said):  # until SLURM ends it
        os.kill(said["pid"], signal.SIGSTOP)
        limit(said, minutes=1)

    def limit(said, minutes=10):
        sweep.says("scontrol", "update", f"JobId={said['job']}", f"TimeLimit={minutes}")

    def kill(said):
        os.kill(said["pid"], signal.SIGKILL)

    def preempt(said):
        sweep.says("scancel", "--signal=USR2", said["job"])

    strikes = {(limited, 0): hang, (killed, 0): kill, (preempted, 0): preempt, (preempted, 1): preempt}

    def struck_all() -> bool:
        for (attempt, restart), strike in list(strikes.items()):
            said = read(attempt / "state.json")
            assert said.get("state") != "done" or strike is limit, "a run was through before it could be struck"
            past_the_lock = (sweep.outputs / attempt.parent.name / "config.yaml").exists()
            if said.get("state") == "running" and said["restart"] == restart and past_the_lock:
                strike(said)
                del strikes[attempt, restart]
        return not strikes

    wait_for(struck_all)
    strikes[limited, 1] = limit  # if it has saved and queued again, the second time is longer
    wait_for(lambda: struck_all() or sweep.is_over(), 150)
    wait_for(sweep.is_over)

    states = sweep.states()
    assert states["failed"] == 1
    assert states["lost"] in (1, 2)  # a run that SLURM wakes at its limit may have the time to save and to queue again
    assert states["done"] == 7 - states["lost"]
    assert "its job is gone" in sweep.launchers("status")
    sweep.launchers("resume")
    assert len(sweep.jobs()) == states["lost"]
    wait_for(sweep.is_over)

    assert sweep.states() == {"done": 7, "failed": 1}
    says = sweep.launchers("status")
    assert "Traceback" in says
    assert "The step is not finite" in says
    for its in sweep.attempts().values():
        is_bad = its[0] == bad
        assert [read(attempt / "state.json")["state"] for attempt in its].count("done") == (0 if is_bad else 1)
        rows = (sweep.outputs / its[0].parent.name / "metrics.jsonl").read_text().splitlines()
        steps = [row["step"] for row in map(json.loads, rows) if "loss/total" in row]
        assert is_bad or steps == [1, 2, 3, 4, 5, 6]
    assert read(preempted / "state.json")["state"] == "done"
    assert len([its for its in sweep.attempts().values() if len(its) == 2]) == states["lost"]


def test_two_submissions_at_once_run_no_cell_twice_and_cancel_leaves_nothing(sweep):
    both = [sweep.submitting("seed=1,2,3") for _ in range(2)]
    says = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], says
    assert sorted("Submitted 3 of 3" in text for text in says) == [False, True]
    assert [len(its) for its in sweep.attempts().values()] == [1, 1, 1]
    assert len(sweep.jobs()) == 3

    pids = wait_for(
        lambda: [pid for its in sweep.attempts().values() if (pid := read(its[0] / "state.json").get("pid"))]
    )
    sweep.launchers("cancel")
    assert sweep.says("squeue", "--noheader") == ""
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert sweep.states() == {"cancelled": 3}


def test_ranks_on_two_nodes_train_one_run(sweep):
    says = sweep.submitting("cluster.nodes=2", "seed=1", "launchers.wait=true").communicate(timeout=120)[0]
    assert sweep.states() == {"done": 1}, says
    (run,) = [path.parent for path in sweep.outputs.glob("*/metrics.jsonl")]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("memory/rank1/peak_gib" in row for row in rows)
    assert [row["step"] for row in rows if "loss/total" in row] == [1, 2, 3, 4, 5, 6]


def test_what_slurm_refuses_is_said_and_may_be_submitted_again(sweep):
    process = sweep.submitting("cluster.partition=nowhere", "seed=1")
    says = process.communicate(timeout=120)[0]
    assert process.returncode == 2, says
    assert "invalid partition specified: nowhere" in says
    assert "Traceback" not in says
    assert sweep.states() == {"cancelled": 1}
    assert sweep.submitting("seed=1").wait(120) == 0
    assert len(sweep.jobs()) == 1


def test_a_search_is_a_job_that_makes_its_trials_and_queues_itself_again(sweep):
    space = ("search=random", "search.num_trials=1", "search.look_seconds=0.2", "loss.weights.giou=interval(1,5)")
    process = sweep.submitting(*space)
    says = process.communicate(timeout=120)[0]
    assert process.returncode == 0, says
    assert "Submitted the search as job" in says
    search = sweep.outputs / "ledger/search"
    wait_for(lambda: [*search.parent.glob("*/trial.json")])
    job = read(search / "0001/job.json")["job"]
    sweep.says("scancel", "--signal=USR2", job)
    wait_for(lambda: read(search / "0001/state.json")["state"] == "done")
    assert "Restarts=1" in sweep.says("scontrol", "show", "job", job)
    assert sweep.states() == {"done": 1}
    assert "search: done" in sweep.launchers("status")
    assert [len(its) for its in sweep.attempts().values()] == [1]
