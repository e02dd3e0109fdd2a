"""Sweeps on a real SLURM: submitted twice, cancelled, on two nodes, refused, in several arrays, preempted too often."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from holding import UNTIL_ASKED
from slurm_sweeps import read, wait_for

CLEARED = "\033[2J\033[H"
HELD_BACK = "{hold: true}"  # SLURM starts none of them


def test_two_submissions_at_once_run_no_cell_twice_and_cancel_leaves_nothing(sweep):
    both = [sweep.start_submission("tracker=jsonl", "seed=1,2,3") for _ in range(2)]
    says = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], says
    assert sorted("Submitted 3 of 3" in text for text in says) == [False, True]
    assert [len(its) for attempts in sweep.attempts().values()] == [1, 1, 1]
    assert len(sweep.jobs()) == 3

    pids = wait_for(
        lambda: [pid for attempts in sweep.attempts().values() if (pid := read(its[0] / "state.json").get("pid"))]
    )
    sweep.launchers("cancel")
    assert sweep.run("squeue", "--noheader") == ""
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert sweep.states() == {"cancelled": 3}


def test_ranks_on_two_nodes_train_one_run(sweep):
    sweep.record("tracker=jsonl", "cluster.nodes=2", "launchers.wait=true", "seed=1")
    sweep.launchers("resume")
    assert sweep.states() == {"done": 1}
    (run,) = [path.parent for path in sweep.outputs.glob("*/metrics.jsonl")]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("memory/rank1/peak_gib" in row for row in rows)
    assert [row["step"] for row in rows if "loss/total" in row] == [1, 2, 3, 4, 5, 6]


def test_a_job_that_is_preempted_more_often_than_it_may_queue_itself_again_stays_preempted(sweep, tmp_path):
    own = tmp_path / "own/tracker/held.yaml"
    own.parent.mkdir(parents=True)
    hold = {"_target_": "holding.Hold", "folder": str(tmp_path), "cell": 1}
    own.write_text(json.dumps({"defaults": ["jsonl", "_self_"], "hold": hold}))
    (tmp_path / "1-1").write_text(UNTIL_ASKED)
    sweep.record("--config-dir", str(tmp_path / "own"), "tracker=held", "cluster.max_requeues=0", "seed=1")
    sweep.launchers("resume")
    (run,) = sweep.outputs.glob("ledger/*/0001")
    log = sweep.outputs / run.parent.name / "metrics.jsonl"
    wait_for(lambda: log.exists() and '"loss/total"' in log.read_text())
    sweep.run("scancel", "--signal=USR2", read(run / "state.json")["job"])
    sweep.wait_until_over()
    assert sweep.states() == {"preempted": 1}
    why = "SIGUSR2; saved at step 1; requeued 0 times, as often as cluster.max_requeues allows"
    assert why in sweep.launchers("status")
    assert "Submitted 1 of 1 runs" in sweep.launchers("resume")
    sweep.launchers("cancel")


def test_a_job_that_slurms_own_scancel_ends_saves_and_does_not_come_back(sweep, tmp_path):
    own = tmp_path / "own/tracker/held.yaml"
    own.parent.mkdir(parents=True)
    hold = {"_target_": "holding.Hold", "folder": str(tmp_path), "cell": 1}
    own.write_text(json.dumps({"defaults": ["jsonl", "_self_"], "hold": hold}))
    (tmp_path / "1-1").write_text(UNTIL_ASKED)
    sweep.record("--config-dir", str(tmp_path / "own"), "tracker=held", "seed=1")
    sweep.environment = {**sweep.environment, "SLURM_RESTART_COUNT": "2"}  # as in a controller that was requeued
    sweep.launchers("resume")
    (run,) = sweep.outputs.glob("ledger/*/0001")
    log = sweep.outputs / run.parent.name / "metrics.jsonl"
    wait_for(lambda: log.exists() and '"loss/total"' in log.read_text())
    state = read(run / "state.json")
    assert state["restart"] == 0
    sweep.run("scancel", state["job"])
    sweep.wait_until_over()
    state = read(run / "state.json")
    assert (state["state"], state.get("reason"), state.get("restart")) == (
        "preempted",
        "SIGTERM; saved at step 1",
        None,
    )
    assert sweep.states() == {"preempted": 1}


def test_what_slurm_refuses_is_said_and_may_be_submitted_again(sweep):
    sweep.record("cluster.partition=nowhere", "seed=1")
    process = sweep.start(sys.executable, "-m", "launchers", "resume", "s")
    says = process.communicate(timeout=120)[0]
    assert process.returncode == 2, says
    assert "invalid partition specified: nowhere" in says
    assert "Traceback" not in says
    assert sweep.states() == {"cancelled": 1}
    sweep.record(f"+cluster.additional={HELD_BACK}", "seed=1")
    sweep.launchers("resume")
    assert len(sweep.jobs()) == 1
    sweep.launchers("cancel")


def test_a_sweep_of_more_cells_than_an_array_may_have_becomes_several(sweep):
    """The tests' cluster has a MaxArraySize of 8."""
    settings = ("cluster.max_parallel=5", "cluster.grace_seconds=45", f"+cluster.additional={HELD_BACK}")
    sweep.record(*settings, "seed=range(1,19)")
    says = sweep.launchers("resume")
    ids = re.findall(r"Submitted (\d) of 18 runs as job (\d+)\.", says)
    assert [number for number, _ in ids] == ["8", "8", "2"]
    assert len(sweep.jobs()) == 18
    throttles = [sweep.run("squeue", "--noheader", f"--jobs={job}", "--format=%i") for _, job in ids]
    assert [text.strip().partition("%")[2].rstrip("]") for text in throttles] == ["2", "2", "1"]
    script = sweep.run("scontrol", "write", "batch_script", ids[0][1], "-")
    assert "#SBATCH --signal=USR2@45\n" in script
    jobs = [read(attempt / "job.json")["job"] for attempts in sweep.attempts().values() for attempt in its]
    assert sorted(jobs) == sorted(f"{job}_{i}" for number, job in ids for i in range(int(number)))
    sweep.launchers("cancel")
    assert sweep.jobs() == []


def test_a_terminal_shows_a_live_table_until_ctrl_c_which_ends_no_run(sweep):
    sweep.record("launchers.wait=true", f"+cluster.additional={HELD_BACK}", "seed=1")
    watching, terminal = in_terminal(sweep, "resume")
    said = shown(terminal, "1 queued")
    watching.send_signal(signal.SIGINT)
    said += shown(terminal, "interrupted")
    assert watching.wait(60) == 130
    assert f"the runs go on. To end them: python -m launchers cancel {sweep.outputs}" in said
    (job,) = sweep.jobs()

    watching, terminal = in_terminal(sweep, "resume")
    assert CLEARED in shown(terminal, "1 queued")
    sweep.run("scancel", job.split()[0])
    assert CLEARED in shown(terminal, "1 lost")
    assert watching.wait(60) == 1


def test_a_search_is_a_job_that_makes_its_trials_and_queues_itself_again(sweep):
    space = ("search=random", "search.num_trials=1", "search.poll_seconds=0.2", "loss.weights.giou=interval(1,5)")
    assert "Submitted the search as job" in sweep.submit("tracker=jsonl", *space)
    search = sweep.outputs / "ledger/search"
    wait_for(lambda: [path for path in search.parent.glob("*/0001/job.json") if path.parents[1] != search])  # submitted
    job = read(search / "0001/job.json")["job"]
    sweep.run("scancel", "--signal=USR2", job)
    wait_for(lambda: read(search / "0001/state.json")["state"] == "done")
    assert "Restarts=1" in sweep.run("scontrol", "show", "job", job)
    assert sweep.states() == {"done": 1}
    assert "search: done" in sweep.launchers("status")
    assert [len(its) for attempts in sweep.attempts().values()] == [1]


def in_terminal(sweep, command: str) -> tuple[subprocess.Popen, int]:
    """A command of launchers, and the terminal that it writes to."""
    ours, its = os.openpty()
    # Tests that a script started in the background ignore Ctrl-C, and so would this.
    arguments = ["env", "--default-signal=INT", sys.executable, "-m", "launchers", command, "s"]
    process = subprocess.Popen(
        arguments, cwd=sweep.folder, env=sweep.environment, stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    return process, ours


def shown(terminal: int, text: str) -> str:
    """What a terminal shows up to a text."""
    said = ""
    while text not in said:
        said += os.read(terminal, 4096).decode()
    return said
