"""Sweeps whose runs this process trains one after the other."""

import os
import signal
import socket
import subprocess
import sys
from collections import Counter

import pytest
import whole_runs
from forked import start_program

import bbu_train.train
from bbu_train.errors import InputError, Interrupted, Preempted, SweepPreempted
from bbu_train.runtime import preemption
from launchers import job_states, watch
from launchers.__main__ import main
from launchers.cells import Cell, compose
from launchers.job_states import SlurmUnavailable, local_job_id
from launchers.launch import launch, start_runs
from launchers.ledger import RESTARTABLE, Ledger
from launchers.status import read_statuses
from launchers.watch import watch_runs


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list[Cell]:
    """Three cells that differ in their seed."""
    outputs = tmp_path_factory.mktemp("here")
    return compose(["-m", f"outputs={outputs}", "sweep=s", "head=none", "seed=1,2,3"], whole_runs.CONF)


@pytest.fixture
def sweep(tmp_path, own_process, cells) -> tuple[Ledger, list[str]]:
    """The ledger of a sweep of three seeds, and the names of its runs."""
    ledger = Ledger(tmp_path / "s/ledger")
    return ledger, [entry.run for entry in ledger.add(cells)]


class FakeTraining(list):
    """Takes the place of the training: a list of the trained seeds. `errors` are raised at their seeds."""

    def __init__(self):
        super().__init__()
        self.errors: dict[int, BaseException] = {}

    def __call__(self, cfg):
        self.append(cfg.seed)
        error = self.errors.get(cfg.seed)
        if isinstance(error, Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
        if error is not None:
            raise error


@pytest.fixture
def trained(monkeypatch):
    """The training is fake, and its job counts as ended, as another command would see it."""
    monkeypatch.setattr(bbu_train.train, "train", trained := FakeTraining())
    monkeypatch.setattr(job_states, "local_job_id", lambda: f"local/{socket.gethostname()}/{os.getpid()}/0")
    yield trained
    preemption._received.clear()


def states(ledger: Ledger) -> Counter[str]:
    return Counter(status.state.name for status in read_statuses(ledger))


def test_a_sweep_continues_after_a_failed_cell_and_names_it(sweep, trained, cells, capsys):
    trained.errors = {1: InputError("bad seed 1"), 2: RuntimeError("broken")}
    assert start_runs(*sweep, RESTARTABLE) == 1  # as with any launcher
    assert trained == [1, 2, 3]
    message = capsys.readouterr().err
    assert message.startswith(f"outputs={cells[0].cfg.outputs} sweep=s head=none seed=1:\nerror: bad seed 1\n")
    assert "RuntimeError: broken" in message
    assert states(sweep[0]) == {"failed": 2, "done": 1}


def test_the_same_command_again_starts_the_missing_runs_but_none_that_is_done_or_failed(sweep, trained):
    trained.errors = {1: InputError("bad seed 1"), 2: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        start_runs(*sweep, RESTARTABLE)
    assert states(sweep[0]) == {"failed": 1, "cancelled": 1, "missing": 1}
    trained.errors = {}
    assert start_runs(*sweep, RESTARTABLE) == 1  # a run is still failed
    assert trained == [1, 2, 2, 3]


def test_a_failed_run_is_started_again_only_by_retry(sweep, trained):
    trained.errors = {2: InputError("bad seed 2")}
    start_runs(*sweep, RESTARTABLE)
    trained.errors = {}
    assert main(["resume", str(sweep[0].folder.parent)]) == 1
    assert states(sweep[0]) == {"done": 2, "failed": 1}
    assert main(["retry", "--failed", str(sweep[0].folder.parent)]) == 0
    assert trained == [1, 2, 3, 2]
    assert states(sweep[0]) == {"done": 3}


def test_a_preempted_sweep_starts_no_further_run_and_continues_with_the_preempted_one(sweep, trained, capsys):
    trained.errors = {2: Preempted(7, "SIGTERM", "folder")}
    assert start_runs(*sweep, RESTARTABLE) == os.EX_TEMPFAIL
    message = capsys.readouterr().err
    assert "SIGTERM ended the run after step 7" in message
    assert message.endswith("The sweep ends here. The same command resumes it.\n")
    assert states(sweep[0]) == {"done": 1, "preempted": 1, "missing": 1}
    trained.errors = {}
    preemption._received.clear()  # the second command is another process
    assert start_runs(*sweep, RESTARTABLE) == 0
    assert trained == [1, 2, 2, 3]


def test_a_second_ctrl_c_says_which_cell_it_ended_at_which_step_and_what_is_saved(sweep, trained):
    trained.errors = {2: Interrupted(7, 4, "folder", [])}
    text = "Interrupted after step 7; the newest checkpoint is that of step 4."
    with pytest.raises(KeyboardInterrupt, match=f"seed=2: {text} The same command resumes the sweep.$"):
        start_runs(*sweep, RESTARTABLE)
    assert [status.state.reason for status in read_statuses(sweep[0]) if status.state.name == "cancelled"] == [text]


def test_a_process_that_replaced_itself_goes_on_with_the_run_that_it_had_begun(sweep, trained, monkeypatch):
    ledger, runs = sweep
    monkeypatch.setattr(job_states, "local_job_id", local_job_id)  # this process is alive
    ledger.entry(runs[1]).add_attempt().begin(local_job_id())
    ledger.entry(runs[2]).add_attempt().begin(local_job_id(os.getppid()))
    monkeypatch.setattr("launchers.launch.watch_runs", lambda *arguments: 0)
    assert start_runs(ledger, runs, RESTARTABLE) == 0
    assert trained == [1, 2]
    assert states(ledger) == {"done": 2, "running": 1}


@pytest.mark.parametrize("job", [local_job_id(), "local/elsewhere/1/1"], ids=["own process", "other host"])
def test_nobody_waits_for_a_run_of_the_own_process_or_of_a_host_that_cannot_be_seen(sweep, monkeypatch, job):
    ledger, runs = sweep
    ledger.entry(runs[0]).add_attempt().begin(job)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: pytest.fail("it waits"))
    assert watch_runs(ledger, runs) == 1
    assert states(ledger) == {"running": 1, "missing": 2}


def test_a_signal_ends_the_wait_for_a_run_of_another_process(sweep, monkeypatch):
    ledger, runs = sweep
    ledger.entry(runs[0]).add_attempt().begin(local_job_id(os.getppid()))
    monkeypatch.setattr(preemption, "_received", ["SIGUSR2"])
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(SweepPreempted, match="SIGUSR2 ended the sweep"):
        watch_runs(ledger, runs)
    assert states(ledger) == {"running": 1, "missing": 2}


def test_slurm_is_asked_again_for_a_while_when_it_does_not_answer(sweep, monkeypatch, tmp_path, capsys):
    ledger, runs = sweep
    ledger.entry(runs[0]).add_attempt().begin("7_0")
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho busy >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def sleep(seconds):
        squeue.write_text("#!/bin/sh\necho '7_0|NODE_FAIL'\n")

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert watch_runs(ledger, runs) == 1
    assert "squeue --noheader --array --states=all failed: busy Trying again." in capsys.readouterr().err
    assert states(ledger) == {"lost": 1, "missing": 2}

    squeue.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(job_states, "RETRY_SECONDS", 0)
    with pytest.raises(SlurmUnavailable):
        watch_runs(ledger, runs)


def test_cancel_releases_a_run_whose_process_it_cannot_reach_and_says_so(sweep, capsys):
    ledger, runs = sweep
    ledger.entry(runs[0]).add_attempt().begin("local/elsewhere/1/1")
    assert main(["cancel", str(ledger.folder.parent)]) == 0
    assert f"{runs[0]}: local/elsewhere/1/1 cannot be reached from here" in capsys.readouterr().out
    assert states(ledger) == {"cancelled": 1, "missing": 2}
    assert all(status.can_start(RESTARTABLE) for status in read_statuses(ledger))


RANKS = """
import sys, types
from pathlib import Path
from bbu_train.runtime import distributed
from launchers.launch import start_runs
from launchers.ledger import RESTARTABLE, Ledger

def train(cfg):
    distributed.start()
    runs = distributed.gather(cfg.run)
    if distributed.is_main():
        print("trained by", *runs)
    distributed.finish()

sys.modules["bbu_train.train"] = fake = types.ModuleType("bbu_train.train")
fake.train = train
ledger = Ledger(Path(sys.argv[1]))
sys.exit(start_runs(ledger, [entry.run for entry in ledger.entries()], RESTARTABLE))
"""


def environment_of_rank(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(whole_runs.CONF.parent), "OMP_NUM_THREADS": "1", **variables}


def test_the_processes_of_torchrun_train_each_run_together(sweep, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    ledger, runs = sweep
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "ranks.py", str(ledger.folder)]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment_of_rank(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    trained = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("trained by")]
    assert trained == [[run, run] for run in sorted(runs)]
    assert states(ledger) == {"done": 3}


def test_a_fault_that_the_check_finds_is_reported_by_one_rank_and_ends_all(tmp_path):
    """The test starts the ranks itself: torchrun would kill the one that has not ended yet."""
    command = ["bbu_train", "-m", f"outputs={tmp_path}", "seed=1,2", "model=qwen25vl3b", "model.checkpoint=/nowhere"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in "01":
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment = {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(start_program(command, tmp_path / f"{rank}.txt", environment))
    for process in ranks:
        process.join(300)
    errors = [(tmp_path / f"{rank}.txt").read_text() for rank in "01"]
    assert [process.exitcode for process in ranks] == [2, 2], errors
    assert [error.count("The weights of /nowhere are missing") for error in errors] == [1, 0]
    assert not any("gloo" in error.lower() for error in errors)


def test_torchrun_and_a_launcher_of_several_processes_are_refused_together(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="Leave out one of them"):
        launch(["-m", "hydra/launcher=local", f"outputs={tmp_path}", "seed=1,2"], whole_runs.CONF)
