"""Sweeps whose runs this process makes one after the other."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter

import pytest
import whole_runs

import bbu_train.train
from bbu_train.errors import InputError, Preempted, SweepPreempted
from bbu_train.runtime import preemption
from launchers import jobs, launch, status
from launchers.__main__ import main
from launchers.cells import compose
from launchers.ledger import OPEN, Ledger


@pytest.fixture
def sweep(tmp_path, own_process):
    """The ledger of a sweep of three seeds, and its runs."""
    given = ["-m", f"outputs={tmp_path}", "sweep=s", "head=none", "seed=1,2,3"]
    ledger = Ledger(tmp_path / "s/ledger")
    return ledger, [entry.run for entry in ledger.add(compose(given, whole_runs.CONF))]


class Trained(list):
    """In place of the training: the seeds that are trained, and `ends`, what is raised at some of them."""

    def __init__(self):
        super().__init__()
        self.ends: dict[int, BaseException] = {}

    def __call__(self, cfg):
        self.append(cfg.seed)
        error = self.ends.get(cfg.seed)
        if isinstance(error, Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
        if error is not None:
            raise error


@pytest.fixture
def trained(monkeypatch):
    """What makes runs is known to have ended, as another command would find it."""
    monkeypatch.setattr(bbu_train.train, "train", trained := Trained())
    monkeypatch.setattr(jobs, "this_process", lambda: f"local/{socket.gethostname()}/{os.getpid()}/0")
    yield trained
    preemption._received.clear()


def states(ledger) -> Counter:
    return Counter(row.state.name for row in status.rows(ledger))


def test_a_sweep_goes_on_after_a_failed_cell_and_names_it(sweep, trained, capsys):
    trained.ends = {1: InputError("bad seed 1"), 2: RuntimeError("broken")}
    assert launch.start(*sweep, OPEN) == 2
    assert trained == [1, 2, 3]
    says = capsys.readouterr().err
    assert says.startswith(f"outputs={sweep[0].folder.parents[1]} sweep=s head=none seed=1:\nerror: bad seed 1\n")
    assert "RuntimeError: broken" in says
    assert states(sweep[0]) == {"failed": 2, "done": 1}


def test_the_same_command_again_starts_what_is_missing_and_not_what_is_done_or_failed(sweep, trained):
    trained.ends = {1: InputError("bad seed 1"), 2: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        launch.start(*sweep, OPEN)
    assert states(sweep[0]) == {"failed": 1, "cancelled": 1, "missing": 1}
    trained.ends = {}
    assert launch.start(*sweep, OPEN) == 1  # as one has failed before
    assert trained == [1, 2, 2, 3]


def test_what_failed_is_tried_again_on_demand_only(sweep, trained):
    trained.ends = {2: InputError("bad seed 2")}
    launch.start(*sweep, OPEN)
    trained.ends = {}
    assert main(["resume", str(sweep[0].folder.parent)]) == 1
    assert states(sweep[0]) == {"done": 2, "failed": 1}
    assert main(["retry", "--failed", str(sweep[0].folder.parent)]) == 0
    assert trained == [1, 2, 3, 2]
    assert states(sweep[0]) == {"done": 3}


def test_a_sweep_that_is_asked_to_end_starts_no_further_cell_and_goes_on_with_it(sweep, trained, capsys):
    trained.ends = {2: Preempted(7, "SIGTERM", "folder")}
    assert launch.start(*sweep, OPEN) == os.EX_TEMPFAIL
    says = capsys.readouterr().err
    assert "SIGTERM asked the run to end, and it did, after step 7" in says
    assert says.endswith("The sweep ends here. The same command goes on with it.\n")
    assert states(sweep[0]) == {"done": 1, "preempted": 1, "missing": 1}
    trained.ends = {}
    assert launch.start(*sweep, OPEN) == 0
    assert trained == [1, 2, 2, 3]


@pytest.mark.parametrize("job", [jobs.this_process(), "local/elsewhere/1/1"], ids=["his own", "elsewhere"])
def test_nobody_waits_for_a_run_of_his_own_process_or_of_one_that_he_cannot_see(sweep, monkeypatch, job):
    ledger, runs = sweep
    ledger.entry(runs[0]).claim().begin(job)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: pytest.fail("it waits"))
    assert launch.watch(ledger, runs) == 1
    assert states(ledger) == {"running": 1, "missing": 2}


def test_a_command_that_waits_for_a_run_of_another_process_ends_when_it_is_asked_to(sweep, monkeypatch):
    ledger, runs = sweep
    ledger.entry(runs[0]).claim().begin(jobs.this_process(os.getppid()))
    monkeypatch.setattr(preemption, "_received", ["SIGUSR2"])
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(SweepPreempted, match="SIGUSR2 asked the sweep to end"):
        launch.watch(ledger, runs)
    assert states(ledger) == {"running": 1, "missing": 2}


def test_a_slurm_that_does_not_answer_is_asked_again_for_a_while(sweep, monkeypatch, tmp_path, capsys):
    ledger, runs = sweep
    ledger.entry(runs[0]).claim().begin("7_0")
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho busy >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def sleep(seconds):
        squeue.write_text("#!/bin/sh\necho '7_0|NODE_FAIL'\n")

    monkeypatch.setattr(launch.time, "sleep", sleep)
    assert launch.watch(ledger, runs) == 1
    assert "squeue --noheader --array --states=all failed: busy Asking again." in capsys.readouterr().err
    assert states(ledger) == {"lost": 1, "missing": 2}

    squeue.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(jobs, "PATIENT_SECONDS", 0)
    with pytest.raises(jobs.NoAnswer):
        launch.watch(ledger, runs)


def test_cancel_gives_a_run_free_whose_process_it_cannot_reach_and_says_so(sweep, capsys):
    ledger, runs = sweep
    ledger.entry(runs[0]).claim().begin("local/elsewhere/1/1")
    assert main(["cancel", str(ledger.folder.parent)]) == 0
    assert f"{runs[0]}: local/elsewhere/1/1 cannot be reached from here" in capsys.readouterr().out
    assert states(ledger) == {"cancelled": 1, "missing": 2}
    assert all(row.may_start(OPEN) for row in status.rows(ledger))


RANKS = """
import sys, types
from pathlib import Path
from bbu_train.runtime import distributed
from launchers.launch import start
from launchers.ledger import OPEN, Ledger

def train(cfg):
    distributed.start()
    runs = distributed.gather(cfg.run)
    if distributed.is_main():
        print("made by", *runs)
    distributed.finish()

sys.modules["bbu_train.train"] = fake = types.ModuleType("bbu_train.train")
fake.train = train
ledger = Ledger(Path(sys.argv[1]))
sys.exit(start(ledger, [entry.run for entry in ledger.entries()], OPEN))
"""


def test_processes_of_torchrun_make_each_run_together(sweep, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    ledger, runs = sweep
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "ranks.py", str(ledger.folder)]
    environment = {**os.environ, "PYTHONPATH": str(whole_runs.CONF.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("made by")]
    assert made == [[run, run] for run in sorted(runs)]
    assert states(ledger) == {"done": 3}


def test_where_the_check_finds_a_fault_one_process_of_torchrun_says_it_and_all_leave(tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "bbu_train", "-m"]
    command += [f"outputs={tmp_path}", "experiment=smoke", "head.num_queries=1,2", "tracker=jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(whole_runs.CONF.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.count("Pictures with more objects than head.num_queries=1") == 1
    codes = set(re.findall(r"exitcode  : (\S+)", done.stderr))
    assert "2" in codes, done.stderr
    assert codes <= {"2", "-15"}, "torchrun ends who has not left yet"
    assert "gloo" not in done.stderr.lower()


def test_torchrun_and_a_launcher_are_not_taken_together(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="Leave out one of them"):
        launch.launch(["-m", "hydra/launcher=local", f"outputs={tmp_path}", "seed=1,2"], whole_runs.CONF)
