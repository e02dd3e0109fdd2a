"""A sweep on a real SLURM whose runs are struck in every way, with MLflow.

Its cells differ in how many logits exist at once, which changes no result as long as there is room for all: so every
good cell, struck or not, has to give the same log and the same weights. With no room at all a cell raises.
"""

import json
import math
import os
import signal
from datetime import datetime, timedelta

import pytest
import whole_runs
from holding import UNTIL_ASKED
from mlflow import MlflowClient
from slurm_sweeps import Sweep, read, wait_for

from bbu_train.tracker.mlflow_sweep import PARENT

LIMITED, WARNED, PREEMPTED, KILLED, BAD = 5001, 5002, 5003, 5004, 0
UNSTRUCK = (5005, 5006, 5007)
CELLS = (LIMITED, WARNED, PREEMPTED, KILLED, BAD, *UNSTRUCK)
KEY = "model.network.vocabulary_chunk"
HOLDS = {(LIMITED, 2): "", (WARNED, 2): UNTIL_ASKED, (PREEMPTED, 1): "", (KILLED, 4): ""}
HOLDS |= {(WARNED, 4): "", (PREEMPTED, 4): ""}  # when they have been started again
GRACE = 120  # seconds between SLURM's signal and the time limit
LOOKS = 30  # SLURM compares jobs with their time limits so often, and signals early rather than late
OF_TIME = ("time/", "memory/")


class Struck:
    """The sweep, its runs known by the values of KEY, and held where they are to be struck."""

    def __init__(self, sweep):
        self.sweep, self.holds = sweep, sweep.folder / "holds"
        self.holds.mkdir()
        for (cell, step), until in HOLDS.items():
            self._hold(cell, step).write_text(until)
        tracker = sweep.folder / "own/tracker/held.yaml"
        tracker.parent.mkdir(parents=True)
        hold = {"_target_": "holding.Hold", "folder": str(self.holds), "cell": f"${{{KEY}}}"}
        tracker.write_text(json.dumps({"defaults": ["mlflow", "_self_"], "hold": hold}))
        options = ("--config-dir", "own", "tracker=held", "tracker.mlflow.flush_values=20")
        options += (f"cluster.grace_seconds={GRACE}", "cluster.max_parallel=4")
        self.submitted = sweep.submit(*options, f"{KEY}={','.join(map(str, CELLS))}")
        self.cells = {int(text.partition("=")[2]): its[0].parent for text, its in sweep.attempts().items()}

    def _hold(self, cell, step):
        return self.holds / f"{cell}-{step}"

    def let_go(self, cell, step):
        self._hold(cell, step).unlink()

    def folder(self, cell):
        """Of the run."""
        return self.sweep.outputs / self.cells[cell].name

    def attempts(self, cell):
        return [read(path / "state.json") for path in sorted(self.cells[cell].glob("0*"))]

    def held(self, cell, step, restart=0):
        """What the job of a run says of itself, when the run is held after a step."""

        def held():
            said = self.attempts(cell)[-1]
            log = self.folder(cell) / "metrics.jsonl"
            logged = log.exists() and any(json.loads(row)["step"] == step for row in log.read_text().splitlines())
            return logged and said["state"] == "running" and said["restart"] >= restart and said

        return wait_for(held)

    def update(self, said, limit):
        self.sweep.run("scontrol", "update", f"JobId={said['job']}", limit)

    def end_in(self, said, seconds):
        """Bring the time limit of a job forward."""
        end = datetime.now() + timedelta(seconds=seconds)
        self.update(said, f"EndTime={end.isoformat(timespec='seconds')}")

    def preempt(self, cell, step, restart):
        said = self.held(cell, step, restart)
        self.sweep.run("scancel", "--signal=USR2", said["job"])
        self.let_go(cell, step)


@pytest.fixture(scope="module")
def struck(cluster, tmp_path_factory):
    """The sweep when it is over; `before` is what its status was before it was resumed."""
    its = Struck(Sweep(cluster, tmp_path_factory.mktemp("struck")))
    its.end_in(its.held(LIMITED, 2), seconds=1)
    its.end_in(its.held(WARNED, 2), seconds=GRACE + LOOKS)
    its.preempt(PREEMPTED, 1, restart=0)
    os.kill(its.held(KILLED, 4)["pid"], signal.SIGKILL)
    its.warned = wait_for(lambda: (said := its.attempts(WARNED)[-1]).get("restart") and said)
    its.update(its.warned, "TimeLimit=10")  # or SLURM would warn it again
    its.preempt(PREEMPTED, 4, restart=1)
    its.held(WARNED, 4, restart=1)
    its.let_go(WARNED, 4)
    its.sweep.wait_until_over()
    its.before = its.sweep.states(), its.sweep.launchers("status")
    its.let_go(LIMITED, 2)
    its.let_go(KILLED, 4)
    its.resumed = its.sweep.launchers("resume")
    its.sweep.wait_until_over()
    return its


def test_what_was_killed_or_stuck_at_its_time_limit_is_lost_until_it_is_resumed(struck):
    states, status = struck.before
    assert "Submitted 8 of 8 runs" in struck.submitted
    assert states == {"done": 5, "lost": 2, "failed": 1}
    assert "its job is gone: TIMEOUT" in status
    assert "Submitted 2 of 2 runs" in struck.resumed


def test_every_good_cell_is_done_once_and_the_bad_one_failed_with_its_traceback(struck):
    assert struck.sweep.states() == {"done": 7, "failed": 1}
    status = struck.sweep.launchers("status")
    assert "Traceback" in status
    assert "split_size can only be 0" in status
    ends = {cell: [said["state"] for said in struck.attempts(cell)] for cell in CELLS}
    resumed = {LIMITED: ["running", "done"], KILLED: ["running", "done"], BAD: ["failed"]}
    assert ends == {cell: ["done"] for cell in CELLS} | resumed


def test_a_job_that_slurm_warns_of_its_time_limit_queues_itself_again_and_is_not_lost(struck):
    assert struck.warned["restart"] >= 1
    assert struck.cells[WARNED].name not in struck.before[1].partition("\n\n")[2]  # the reasons of what went wrong


def test_struck_runs_equal_runs_that_were_not(struck):
    steps = [row["step"] for row in whole_runs.rows(struck.folder(UNSTRUCK[0])) if "loss/total" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    for cell in set(CELLS) - {BAD}:
        whole_runs.assert_equal_runs(struck.folder(cell), struck.folder(UNSTRUCK[0]))


def test_mlflow_has_a_child_for_every_cell_with_every_point_once(struck):
    client = MlflowClient(f"sqlite:///{struck.sweep.folder}/outputs/mlflow.db")
    (parent, *others), children = by_parent(client)
    assert (others, parent.info.status, len(children)) == ([], "FINISHED", len(CELLS))
    for cell in CELLS:
        child = children[str(struck.folder(cell))]
        assert child.data.tags[PARENT] == parent.info.run_id
        assert child.info.status == ("FAILED" if cell == BAD else "FINISHED")
        assert points_in(client, child) == points_of(struck.folder(cell))


def by_parent(client):
    """The runs without a parent, and the others by their folder."""
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    return (
        [run for run in runs if PARENT not in run.data.tags],
        {run.data.tags["folder"]: run for run in runs if PARENT in run.data.tags},
    )


def points_in(client, run):
    """(step, value) of every metric; of times and memory the steps, as a step that was done again took another time."""
    histories = {metric: client.get_metric_history(run.info.run_id, metric) for metric in run.data.metrics}
    return {
        metric: [point.step if metric.startswith(OF_TIME) else (point.step, point.value) for point in history]
        for metric, history in histories.items()
    }


def points_of(folder):
    """The same of metrics.jsonl."""
    points = {}
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for metric, value in row.items():
            if metric not in ("step", "time/logged") and math.isfinite(value):
                points.setdefault(metric, []).append(
                    row["step"] if metric.startswith(OF_TIME) else (row["step"], value)
                )
    return points
