"""A sweep with MLflow on a real SLURM whose runs are interrupted in every way.

Its cells differ only in the number of logits that exist at once, which changes no result as long as there is room for
all of them. So every good cell, interrupted or not, must give the same log and the same weights. Without any room a
cell raises.
"""

import json
import math
import os
import signal
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import whole_runs
from holding import UNTIL_ASKED
from mlflow import MlflowClient
from slurm_sweeps import Sweep, read, wait_for

from bbu_train.tracker.mlflow_sweep import PARENT

LIMITED, WARNED, PREEMPTED, KILLED, BAD = 5001, 5002, 5003, 5004, 0
UNDISTURBED = (5005, 5006, 5007)
CELLS = (LIMITED, WARNED, PREEMPTED, KILLED, BAD, *UNDISTURBED)
KEY = "model.network.vocabulary_chunk"
HOLDS = {(LIMITED, 2): "", (WARNED, 2): UNTIL_ASKED, (PREEMPTED, 1): "", (KILLED, 4): ""}
HOLDS |= {(WARNED, 4): "", (PREEMPTED, 4): ""}  # after they have been started again
GRACE = 120  # seconds between SLURM's signal and the time limit
CHECK_INTERVAL = 30  # seconds between SLURM's comparisons of jobs with their time limits; it signals early, never late
VARYING = ("time/", "memory/")

pytestmark = pytest.mark.slow  # four minutes, most of them until SLURM has warned a job of its time limit


class InterruptedSweep:
    """The sweep. Its runs are known by their values of KEY, and held at the steps where they are to be interrupted."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.holds = sweep, sweep.folder / "holds"
        self.holds.mkdir()
        for (cell, step), content in HOLDS.items():
            self._hold(cell, step).write_text(content)
        tracker = sweep.folder / "own/tracker/held.yaml"
        tracker.parent.mkdir(parents=True)
        hold = {"_target_": "holding.Hold", "folder": str(self.holds), "cell": f"${{{KEY}}}"}
        tracker.write_text(json.dumps({"defaults": ["mlflow", "_self_"], "hold": hold}))
        options = ("--config-dir", "own", "tracker=held", "tracker.mlflow.flush_values=20")
        options += (f"cluster.grace_seconds={GRACE}", "cluster.max_parallel=4")
        self.submitted = sweep.submit(*options, f"{KEY}={','.join(map(str, CELLS))}")
        self.cells = {int(text.partition("=")[2]): paths[0].parent for text, paths in sweep.attempts().items()}
        self.warned: dict = {}
        self.before: tuple[Counter[str], str] = Counter(), ""
        self.resumed = ""

    def _hold(self, cell: int, step: int) -> Path:
        return self.holds / f"{cell}-{step}"

    def release(self, cell: int, step: int) -> None:
        self._hold(cell, step).unlink()

    def folder(self, cell: int) -> Path:
        """Return the folder of the cell's run."""
        return self.sweep.outputs / self.cells[cell].name

    def attempts(self, cell: int) -> list[dict]:
        """Return state.json of each attempt at the cell's run."""
        return [read(path / "state.json") for path in sorted(self.cells[cell].glob("0*"))]

    def wait_until_held(self, cell: int, step: int, restart: int = 0) -> dict:
        """Wait until the run is held after a step; return its state.json."""

        def state_if_held() -> dict | bool:
            state = self.attempts(cell)[-1]
            log = self.folder(cell) / "metrics.jsonl"
            is_logged = log.exists() and any(json.loads(row)["step"] == step for row in log.read_text().splitlines())
            return is_logged and state["state"] == "running" and state["restart"] >= restart and state

        return wait_for(state_if_held)

    def update(self, state: dict, limit: str) -> None:
        self.sweep.run("scontrol", "update", f"JobId={state['job']}", limit)

    def end_in(self, state: dict, seconds: int) -> None:
        """Move the time limit of a job forward."""
        end = datetime.now() + timedelta(seconds=seconds)
        self.update(state, f"EndTime={end.isoformat(timespec='seconds')}")

    def preempt(self, cell: int, step: int, restart: int) -> None:
        state = self.wait_until_held(cell, step, restart)
        self.sweep.run("scancel", "--signal=USR2", state["job"])
        self.release(cell, step)


@pytest.fixture(scope="module")
def interrupted(cluster, tmp_path_factory) -> InterruptedSweep:
    """The sweep when it is over; `before` has its states and its status before it was resumed."""
    runs = InterruptedSweep(Sweep(cluster, tmp_path_factory.mktemp("interrupted")))
    runs.end_in(runs.wait_until_held(LIMITED, 2), seconds=1)
    runs.end_in(runs.wait_until_held(WARNED, 2), seconds=GRACE + CHECK_INTERVAL)
    runs.preempt(PREEMPTED, 1, restart=0)
    os.kill(runs.wait_until_held(KILLED, 4)["pid"], signal.SIGKILL)
    runs.warned = wait_for(lambda: (state := runs.attempts(WARNED)[-1]).get("restart") and state)
    runs.update(runs.warned, "TimeLimit=10")  # or SLURM would warn it again
    runs.preempt(PREEMPTED, 4, restart=1)
    runs.wait_until_held(WARNED, 4, restart=1)
    runs.release(WARNED, 4)
    runs.sweep.wait_until_over()
    runs.before = runs.sweep.states(), runs.sweep.launchers("status")
    runs.release(LIMITED, 2)
    runs.release(KILLED, 4)
    runs.resumed = runs.sweep.launchers("resume")
    runs.sweep.wait_until_over()
    return runs


def test_a_run_that_is_killed_or_ignores_its_time_limit_is_lost_until_it_is_resumed(interrupted):
    states, status = interrupted.before
    assert "Submitted 8 of 8 runs" in interrupted.submitted
    assert states == {"done": 5, "lost": 2, "failed": 1}
    assert "its job is gone: TIMEOUT" in status
    assert "Submitted 2 of 2 runs" in interrupted.resumed


def test_every_good_cell_is_done_once_and_the_bad_one_has_failed_with_its_traceback(interrupted):
    assert interrupted.sweep.states() == {"done": 7, "failed": 1}
    status = interrupted.sweep.launchers("status")
    assert "Traceback" in status
    assert "split_size can only be 0" in status
    ends = {cell: [state["state"] for state in interrupted.attempts(cell)] for cell in CELLS}
    resumed = {LIMITED: ["running", "done"], KILLED: ["running", "done"], BAD: ["failed"]}
    assert ends == {cell: ["done"] for cell in CELLS} | resumed


def test_a_job_that_slurm_warns_of_its_time_limit_requeues_itself_and_is_not_lost(interrupted):
    assert interrupted.warned["restart"] >= 1
    assert interrupted.cells[WARNED].name not in interrupted.before[1].partition("\n\n")[2]  # the part with the reasons


def test_interrupted_runs_equal_undisturbed_runs(interrupted):
    steps = [row["step"] for row in whole_runs.rows(interrupted.folder(UNDISTURBED[0])) if "loss/total" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    for cell in set(CELLS) - {BAD}:
        whole_runs.assert_equal_runs(interrupted.folder(cell), interrupted.folder(UNDISTURBED[0]))


def test_mlflow_has_a_child_for_every_cell_with_every_point_once(interrupted):
    client = MlflowClient(f"sqlite:///{interrupted.sweep.folder}/outputs/mlflow.db")
    (parent, *others), children = by_parent(client)
    assert (others, parent.info.status, len(children)) == ([], "FINISHED", len(CELLS))
    for cell in CELLS:
        child = children[str(interrupted.folder(cell))]
        assert child.data.tags[PARENT] == parent.info.run_id
        assert child.info.status == ("FAILED" if cell == BAD else "FINISHED")
        assert points_in(client, child) == points_of(interrupted.folder(cell))


def by_parent(client):
    """Return the runs without a parent, and the others by their folder."""
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    return (
        [run for run in runs if PARENT not in run.data.tags],
        {run.data.tags["folder"]: run for run in runs if PARENT in run.data.tags},
    )


def points_in(client, run):
    """Return (step, value) of every metric; of times and memory only the step, as these values vary."""
    histories = {metric: client.get_metric_history(run.info.run_id, metric) for metric in run.data.metrics}
    return {
        metric: [point.step if metric.startswith(VARYING) else (point.step, point.value) for point in history]
        for metric, history in histories.items()
    }


def points_of(folder):
    """Return the same from metrics.jsonl."""
    points = {}
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for metric, value in row.items():
            if metric not in ("step", "time/logged") and math.isfinite(value):
                points.setdefault(metric, []).append(
                    row["step"] if metric.startswith(VARYING) else (row["step"], value)
                )
    return points
