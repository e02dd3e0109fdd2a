"""Sweeps on this machine, and the commands that look after a sweep."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from slurm_sweeps import wait_for

import launchers.__main__
import launchers.launch
from bbu_train.runtime import preemption
from launchers import local
from launchers.__main__ import main
from launchers.cells import compose
from launchers.launch import launch, start_runs
from launchers.ledger import RESTARTABLE, Attempt, Ledger
from launchers.status import read_statuses

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("experiment=smoke", "tracker=jsonl", "threads=1", "head=none", "loss=language", "steps=3")
SMALL += ("data.num_train=8", "data.num_validation=2", "sampler.num_samples=1", "eval_every=null", "save_every=null")


JOB = """
import sys, time, types
from bbu_train.runtime import preemption
from bbu_train.errors import Preempted
from launchers.job import Job

def train(cfg):
    {training}

preemption.install()
sys.modules["bbu_train.train"] = fake = types.ModuleType("bbu_train.train")
fake.train = train
Job(sys.argv[1])()
"""
TRAIN_UNTIL_ASKED = """
    while not preemption.requested():
        time.sleep(0.01)
    raise Preempted(7, preemption.signal_name(), cfg.folder)
"""


def start_job(attempt: Attempt, training: str) -> subprocess.Popen[bytes]:
    """Start a job whose training is this code."""
    command = [sys.executable, "-c", JOB.format(training=training), str(attempt.folder)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


def run_module(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )


def test_a_sweep_runs_two_at_a_time_and_the_same_command_again_runs_only_what_is_missing(
    tmp_path, own_process, monkeypatch, capfd
):
    """The second command runs in this process, without the first one's checks, and its training does nothing."""
    command = ("-m", "hydra/launcher=local", "launchers.num_parallel=2", "sweep=s", *SMALL)
    done = run_module(tmp_path, "bbu_train", *command, "optimizer.groups.llm.lr=1e-3,1e30")
    assert done.returncode == 1, done.stderr
    assert "1 done, 1 failed" in done.stdout

    def check_cells(cells, groups_without_estimate, known_steps):
        assert groups_without_estimate == [], "the finished run tells what the new one takes"
        return {}

    monkeypatch.setattr(launchers.launch, "check_cells", check_cells)
    monkeypatch.setattr(local, "_start_process", lambda attempt, gpu: start_job(attempt, "pass"))
    assert launch([*command, "optimizer.groups.llm.lr=1e-3,1e30,2e-3"], ROOT / "conf") == 1
    output = capfd.readouterr().out
    assert output.count(" has ended") == 1
    assert "2 done, 1 failed" in output
    assert "3 runs: " in output

    done = run_module(tmp_path, "launchers", "status", "s")
    assert "not finite" in done.stdout
    assert "Traceback" in done.stdout
    assert [len(list(path.parent.glob("0*"))) for path in tmp_path.glob("outputs/s/ledger/*/cell.json")] == [1, 1, 1]
    (run, *_) = tmp_path.glob("outputs/s/*/environment.json")
    assert json.loads(run.read_text())["choices"]["tracker"] == "jsonl"


def send_signal(ledger: Ledger) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def press_ctrl_c(ledger: Ledger) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def cancel(ledger: Ledger) -> None:
    main(["cancel", str(ledger.folder.parent)])


@pytest.mark.parametrize(
    ("ask", "code", "state"),
    [(send_signal, os.EX_TEMPFAIL, "preempted"), (press_ctrl_c, 130, "preempted"), (cancel, 1, "cancelled")],
)
def test_a_sweep_that_is_asked_to_end_ends_its_runs_and_starts_no_further_one(
    tmp_path, own_process, monkeypatch, ask, code, state
):
    def states() -> Counter[str]:
        return Counter(status.state.name for status in read_statuses(ledger))

    monkeypatch.setattr(local, "_start_process", lambda attempt, gpu: start_job(attempt, TRAIN_UNTIL_ASKED))
    monkeypatch.setattr(launchers.__main__, "CANCEL_POLL_SECONDS", 0.1)
    arguments = ["-m", "hydra/launcher=local", f"outputs={tmp_path}", "sweep=s", "head=none", "seed=1,2,3"]
    ledger = Ledger(tmp_path / "s/ledger")
    ledger.add(compose(arguments, ROOT / "conf"))
    runs = [entry.run for entry in ledger.entries()]

    def ask_when_it_runs():
        wait_for(lambda: states()["running"])
        ask(ledger)

    asking = threading.Thread(target=ask_when_it_runs)
    asking.start()
    try:
        assert start_runs(ledger, runs, RESTARTABLE) == code
    finally:
        asking.join()
        preemption._received.clear()
    assert states() == {state: 1, "missing": 2}


def test_a_second_ctrl_c_says_where_it_ended_the_runs_that_were_under_way(tmp_path):
    ledger = Ledger(tmp_path / "s/ledger")
    command = ["-m", "hydra/launcher=local", f"outputs={tmp_path}", "sweep=s", "head=none", "seed=1,2,3"]
    before, ended, _ = ledger.add(compose(command, ROOT / "conf"))
    before.add_attempt().write("cancelled", reason="interrupted yesterday")
    with pytest.raises(KeyboardInterrupt) as interrupt, local._ending_runs(ledger):
        ended.add_attempt().write("cancelled", reason="Interrupted after step 7; no step is saved.")
        raise KeyboardInterrupt
    assert str(interrupt.value) == (
        "Interrupted: the runs that were under way have ended.\n"
        f"  {ended.run}: Interrupted after step 7; no step is saved.\n"
        "The same command resumes the sweep."
    )


def test_an_unknown_sweep_is_refused_with_the_nearest_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BBU_OUTPUTS", str(tmp_path))
    (tmp_path / "rates/ledger").mkdir(parents=True)
    assert main(["status", "rate"]) == 2
    assert "Did you mean rates?" in capsys.readouterr().err
    assert main(["status", "rates"]) == 0
    assert main(["status", str(tmp_path / "rates")]) == 0
    with pytest.raises(SystemExit):
        main(["retry", "rates"])
