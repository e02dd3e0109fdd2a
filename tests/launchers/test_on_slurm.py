"""Sweeps on a real SLURM: submitted twice, cancelled, on two nodes, refused, in several arrays, preempted too often."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import restarts
from holding import UNTIL_ASKED
from slurm_sweeps import Sweep, read, wait_for

from bbu_train.training.learnt_layout import FILE
from launchers.watch import CLEAR_SCREEN

NEVER_STARTED = "{hold: true}"  # SLURM keeps such jobs in the queue


def hold_run(sweep: Sweep, *overrides: str) -> Path:
    """Submit a sweep of one run and hold it after its first step until a signal comes; return its attempt's folder."""
    tracker = sweep.folder / "own/tracker/held.yaml"
    tracker.parent.mkdir(parents=True)
    hold = {"_target_": "holding.Hold", "folder": str(sweep.folder), "cell": 1}
    tracker.write_text(json.dumps({"defaults": ["jsonl", "_self_"], "hold": hold}))
    (sweep.folder / "1-1").write_text(UNTIL_ASKED)
    sweep.record("--config-dir", str(sweep.folder / "own"), "tracker=held", *overrides, "seed=1")
    sweep.launchers("resume")
    (attempt,) = sweep.outputs.glob("ledger/*/0001")
    log = sweep.outputs / attempt.parent.name / "metrics.jsonl"
    wait_for(lambda: log.exists() and '"loss/total"' in log.read_text())
    return attempt


def test_two_submissions_at_the_same_time_run_no_cell_twice_and_cancel_leaves_nothing(sweep):
    submissions = [sweep.start_submission("tracker=jsonl", "seed=1,2,3") for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in submissions]
    assert [process.returncode for process in submissions] == [0, 0], outputs
    assert sorted("Submitted 3 of 3" in output for output in outputs) == [False, True]
    assert [len(attempts) for attempts in sweep.attempts().values()] == [1, 1, 1]
    assert len(sweep.jobs()) == 3

    def pids() -> list[int]:
        states = [read(attempts[0] / "state.json") for attempts in sweep.attempts().values()]
        return [state["pid"] for state in states if "pid" in state]

    started = wait_for(pids)
    sweep.launchers("cancel")
    assert sweep.run("squeue", "--noheader") == ""
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    assert sweep.states() == {"cancelled": 3}


def test_ranks_on_two_nodes_train_one_run(sweep):
    sweep.record("tracker=jsonl", "cluster.nodes=2", "launchers.wait=true", "seed=1")
    sweep.launchers("resume")
    assert sweep.states() == {"done": 1}
    (run,) = [path.parent for path in sweep.outputs.glob("*/metrics.jsonl")]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("memory/rank1/peak_gib" in row for row in rows)
    assert [row["step"] for row in rows if "loss/total" in row] == [1, 2, 3, 4, 5, 6]


def test_a_job_that_is_preempted_more_often_than_max_requeues_stays_preempted(sweep):
    attempt = hold_run(sweep, "cluster.max_requeues=0")
    sweep.run("scancel", "--signal=USR2", read(attempt / "state.json")["job"])
    sweep.wait_until_over()
    assert sweep.states() == {"preempted": 1}
    reason = "SIGUSR2; saved at step 1; requeued 0 times, as often as cluster.max_requeues allows"
    assert reason in sweep.launchers("status")
    assert "Submitted 1 of 1 runs" in sweep.launchers("resume")
    sweep.launchers("cancel")


def test_a_job_that_slurms_own_scancel_ends_saves_and_is_not_requeued(sweep):
    sweep.environment = {**sweep.environment, "SLURM_RESTART_COUNT": "2"}  # as in a controller that was requeued
    attempt = hold_run(sweep)
    state = read(attempt / "state.json")
    assert state["restart"] == 0
    sweep.run("scancel", state["job"])
    sweep.wait_until_over()
    state = read(attempt / "state.json")
    assert (state["state"], state["reason"]) == ("preempted", "SIGTERM; saved at step 1")
    assert "restart" not in state
    assert sweep.states() == {"preempted": 1}


def test_what_slurm_refuses_is_reported_and_can_be_submitted_again(sweep):
    sweep.record("cluster.partition=nowhere", "seed=1")
    process = sweep.start(sys.executable, "-m", "launchers", "resume", "s")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "invalid partition specified: nowhere" in output
    assert "Traceback" not in output
    assert sweep.states() == {"cancelled": 1}
    sweep.record(f"+cluster.additional={NEVER_STARTED}", "seed=1")
    sweep.launchers("resume")
    assert len(sweep.jobs()) == 1
    sweep.launchers("cancel")


def test_a_sweep_with_more_cells_than_an_array_may_have_becomes_several_arrays(sweep):
    """The tests' cluster has a MaxArraySize of 8."""
    settings = ("cluster.max_parallel=5", "cluster.grace_seconds=45", f"+cluster.additional={NEVER_STARTED}")
    sweep.record(*settings, "seed=range(1,19)")
    ids = re.findall(r"Submitted (\d) of 18 runs as job (\d+)\.", sweep.launchers("resume"))
    assert [number for number, _ in ids] == ["8", "8", "2"]
    assert len(sweep.jobs()) == 18
    throttles = [sweep.run("squeue", "--noheader", f"--jobs={job}", "--format=%i") for _, job in ids]
    assert [text.strip().partition("%")[2].rstrip("]") for text in throttles] == ["2", "2", "1"]
    script = sweep.run("scontrol", "write", "batch_script", ids[0][1], "-")
    assert "#SBATCH --signal=USR2@45\n" in script
    jobs = [read(attempt / "job.json")["job"] for attempts in sweep.attempts().values() for attempt in attempts]
    assert sorted(jobs) == sorted(f"{job}_{i}" for number, job in ids for i in range(int(number)))
    sweep.launchers("cancel")
    assert sweep.jobs() == []


def test_a_terminal_shows_a_live_table_until_ctrl_c_which_ends_no_run(sweep):
    sweep.record("launchers.wait=true", f"+cluster.additional={NEVER_STARTED}", "seed=1")
    watching, terminal = start_in_terminal(sweep, "resume")
    text = read_until(terminal, "1 queued")
    watching.send_signal(signal.SIGINT)
    text += read_until(terminal, "To end them")
    assert watching.wait(60) == 130
    assert f"the runs continue. To end them: python -m launchers cancel {sweep.outputs}" in text
    (job,) = sweep.jobs()

    watching, terminal = start_in_terminal(sweep, "resume")
    assert CLEAR_SCREEN in read_until(terminal, "1 queued")
    sweep.run("scancel", job.split()[0])
    assert CLEAR_SCREEN in read_until(terminal, "1 lost")
    assert watching.wait(60) == 1


def test_a_search_is_a_job_that_starts_its_trials_and_requeues_itself(sweep):
    space = ("search=random", "search.num_trials=1", "search.poll_seconds=0.2", "loss.weights.giou=interval(1,5)")
    assert "Submitted the search as job" in sweep.submit("tracker=jsonl", *space)
    search = sweep.outputs / "ledger/search"
    wait_for(lambda: [path for path in search.parent.glob("*/0001/job.json") if path.parents[1] != search])  # a trial
    job = read(search / "0001/job.json")["job"]
    sweep.run("scancel", "--signal=USR2", job)
    wait_for(lambda: read(search / "0001/state.json")["state"] == "done")
    assert "Restarts=1" in sweep.run("scontrol", "show", "job", job)
    assert sweep.states() == {"done": 1}
    assert "search: done" in sweep.launchers("status")
    assert [len(attempts) for attempts in sweep.attempts().values()] == [1]


@pytest.mark.slow
def test_the_ranks_of_a_job_start_again_by_themselves_when_one_runs_out_of_memory(sweep):
    steps = "sampler.num_samples=4", "save_every=1", restarts.FAILS
    sweep.record("tracker=jsonl", "cluster.nodes=2", "launchers.wait=true", *steps, "seed=1")
    sweep.launchers("resume")
    assert sweep.states() == {"done": 1}
    assert [len(attempts) for attempts in sweep.attempts().values()] == [1]
    (learnt,) = sweep.outputs.glob(f"*/{FILE}")
    assert read(learnt)["num_parts"] == {"asked": 2, "taken": 4, "step": 1}


def start_in_terminal(sweep: Sweep, command: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command of launchers in a terminal; return its process and the file descriptor of its output."""
    ours, theirs = os.openpty()
    # Programs that a script starts in the background ignore Ctrl-C, and their children would too.
    arguments = ["env", "--default-signal=INT", sys.executable, "-m", "launchers", command, "s"]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(arguments, cwd=sweep.folder, env=sweep.environment, **streams, start_new_session=True)
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: str) -> str:
    """Return what a terminal shows up to `text`."""
    shown = ""
    while text not in shown:
        shown += os.read(terminal, 4096).decode()
    return shown
