"""A sweep in MLflow: its parent, its cells, and what they say of themselves."""

import threading

import pytest
from tracked_runs import arguments, begin, log

from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.mlflow_store import find_or_create_experiment, open_client
from bbu_train.tracker.mlflow_sweep import KEY, PARENT, find_or_create_parent


@pytest.fixture
def outputs(tmp_path):
    return tmp_path


def cell(outputs, run, **changed):
    return begin(outputs, run=run, in_sweep=True, title=f"vision.lr={run}", **changed)


def in_store(outputs, name=None):
    """The runs that MLflow shows, or the one of that name."""
    client = open_client(f"sqlite:///{outputs}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    if name is None:
        return runs
    (found,) = (run for run in runs if run.info.run_name == name)
    return found


def test_a_sweep_is_one_run_with_a_child_for_each_cell(outputs):
    for run in ("1e-5", "2e-5"):
        both = cell(outputs, run)
        log(both, 1)
        both[1].close("done")
    parent = in_store(outputs, "sweep")
    assert (parent.info.status, parent.data.tags["sweep"]) == ("FINISHED", "sweep")
    assert {run.info.run_name: run.data.tags.get(PARENT) for run in in_store(outputs)} == {
        "sweep": None,
        "vision.lr=1e-5": parent.info.run_id,
        "vision.lr=2e-5": parent.info.run_id,
    }


def test_a_single_run_has_no_parent(outputs):
    begin(outputs)[1].close("done")
    assert [run.info.run_name for run in in_store(outputs)] == ["run"]


def test_a_preempted_cell_goes_on_in_its_run_and_the_parent_runs_until_it_is_done(outputs, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    cell(outputs, "other")[1].close("failed")
    both = cell(outputs, "cell")
    log(both, 1)
    both[1].close("preempted")
    waiting = in_store(outputs, "vision.lr=cell")
    assert (waiting.info.status, waiting.data.tags["state"]) == ("SCHEDULED", "preempted")
    assert (waiting.data.tags["slurm_job_id"], waiting.data.tags["identity"]) == ("7_1", "a1b2c3d4")
    assert waiting.data.tags["folder"] == str(outputs / "sweep" / "cell")
    assert in_store(outputs, "sweep").info.status == "RUNNING"
    both = cell(outputs, "cell", step=1)
    assert in_store(outputs, "vision.lr=cell").data.tags["state"] == "running"
    log(both, 2)
    both[1].close("done")
    done = in_store(outputs, "vision.lr=cell")
    assert (done.info.run_id, done.info.status, done.data.tags["state"]) == (waiting.info.run_id, "FINISHED", "done")
    assert in_store(outputs, "sweep").info.status == "FINISHED"
    assert in_store(outputs, "vision.lr=other").info.status == "FAILED"


def test_a_preempted_cell_that_is_pruned_waits_no_more_and_nor_does_its_parent(outputs):
    both = cell(outputs, "cell")
    log(both, 1)
    both[1].close("preempted")
    settings = arguments(outputs)
    assert mlflow_finished_run.mark_pruned(settings, outputs / "sweep/cell") == f"run {both[1].stored.run_id}"
    pruned = in_store(outputs, "vision.lr=cell")
    assert (pruned.info.status, pruned.data.tags["state"]) == ("KILLED", "pruned")
    assert in_store(outputs, "sweep").info.status == "FINISHED"
    assert "MLflow has no run of this folder" in mlflow_finished_run.mark_pruned(settings, outputs / "sweep/other")


def test_a_cell_finds_its_parent_again_where_two_were_made(outputs):
    """Machines without a common lock may each make one; the older is the sweep's, and takes all cells."""
    both = cell(outputs, "cell")
    taken = in_store(outputs, "sweep")
    client = both[1].stored.client
    older = client.create_run(
        taken.info.experiment_id, start_time=1, run_name="sweep", tags={KEY: taken.data.tags[KEY]}
    )
    both[1].close("done")
    assert in_store(outputs, "sweep").info.run_id == older.info.run_id
    assert in_store(outputs, "vision.lr=cell").data.tags[PARENT] == older.info.run_id


def test_jobs_that_ask_for_the_parent_at_once_are_given_the_same(outputs):
    uri, names, found = f"sqlite:///{outputs}/mlflow.db", ["it's", 'a "b"', "排序"], []
    experiment = find_or_create_experiment(open_client(uri), "several sweeps", None)
    asking = [
        threading.Thread(
            target=lambda name=name: found.append((name, find_or_create_parent(open_client(uri), experiment, name)))
        )
        for name in names * 3
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(found) == 9
    assert len(set(found)) == len({run_id for _, run_id in found}) == 3
