"""A sweep in MLflow: its parent run, its cells, their tags and their states."""

import threading

from tracked_runs import begin, mlflow_arguments

from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.mlflow_store import absolute_uri, find_or_create_experiment, open_client
from bbu_train.tracker.mlflow_sweep import KEY, PARENT, find_or_create_parent


def begin_cell(outputs, run, **changes):
    return begin(outputs, run=run, in_sweep=True, title=f"vision.lr={run}", **changes)


def stored_runs(outputs):
    """Return the runs that MLflow shows."""
    client = open_client(absolute_uri(f"sqlite:///{outputs}/mlflow.db"))
    return client.search_runs([client.get_experiment_by_name("sweep").experiment_id])


def stored_run(outputs, name):
    (run,) = (run for run in stored_runs(outputs) if run.info.run_name == name)
    return run


def test_a_sweep_is_one_run_with_a_child_for_each_cell(outputs):
    for run in ("1e-5", "2e-5"):
        tracked = begin_cell(outputs, run)
        tracked.log(1)
        tracked.mlflow.close("done")
    parent = stored_run(outputs, "sweep")
    assert (parent.info.status, parent.data.tags["sweep"]) == ("FINISHED", "sweep")
    assert {run.info.run_name: run.data.tags.get(PARENT) for run in stored_runs(outputs)} == {
        "sweep": None,
        "vision.lr=1e-5": parent.info.run_id,
        "vision.lr=2e-5": parent.info.run_id,
    }


def test_a_single_run_has_no_parent(outputs):
    begin(outputs).mlflow.close("done")
    assert [run.info.run_name for run in stored_runs(outputs)] == ["run"]


def test_a_preempted_cell_resumes_its_run_and_the_parent_runs_until_it_is_done(outputs, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    begin_cell(outputs, "other").mlflow.close("failed")
    tracked = begin_cell(outputs, "cell")
    tracked.log(1)
    tracked.mlflow.close("preempted")
    waiting = stored_run(outputs, "vision.lr=cell")
    assert (waiting.info.status, waiting.data.tags["state"]) == ("SCHEDULED", "preempted")
    assert (waiting.data.tags["slurm_job_id"], waiting.data.tags["identity"]) == ("7_1", "a1b2c3d4")
    assert waiting.data.tags["folder"] == str(outputs / "sweep" / "cell")
    assert stored_run(outputs, "sweep").info.status == "RUNNING"
    tracked = begin_cell(outputs, "cell", step=1)
    assert stored_run(outputs, "vision.lr=cell").data.tags["state"] == "running"
    tracked.log(2)
    tracked.mlflow.close("done")
    done = stored_run(outputs, "vision.lr=cell")
    assert (done.info.run_id, done.info.status, done.data.tags["state"]) == (waiting.info.run_id, "FINISHED", "done")
    assert stored_run(outputs, "sweep").info.status == "FINISHED"
    assert stored_run(outputs, "vision.lr=other").info.status == "FAILED"


def test_pruning_a_preempted_cell_ends_its_run_and_the_parents(outputs):
    tracked = begin_cell(outputs, "cell")
    tracked.log(1)
    tracked.mlflow.close("preempted")
    settings = mlflow_arguments(outputs)
    message = f"run {tracked.mlflow.uploader.run_id}, marked as pruned"
    assert mlflow_finished_run.mark_pruned(settings, outputs / "sweep/cell") == message
    pruned = stored_run(outputs, "vision.lr=cell")
    assert (pruned.info.status, pruned.data.tags["state"]) == ("KILLED", "pruned")
    assert stored_run(outputs, "sweep").info.status == "FINISHED"
    assert "MLflow has no run of this folder" in mlflow_finished_run.mark_pruned(settings, outputs / "sweep/other")


def test_a_cell_joins_the_older_of_two_parents(outputs):
    """Machines without a common lock may each create one. The older one gets all cells."""
    tracked = begin_cell(outputs, "cell")
    younger = stored_run(outputs, "sweep")
    client = tracked.mlflow.uploader.client
    older = client.create_run(
        younger.info.experiment_id, start_time=1, run_name="sweep", tags={KEY: younger.data.tags[KEY]}
    )
    tracked.mlflow.close("done")
    assert stored_run(outputs, "sweep").info.run_id == older.info.run_id
    assert stored_run(outputs, "vision.lr=cell").data.tags[PARENT] == older.info.run_id


def test_jobs_that_create_the_parent_at_the_same_time_get_the_same_one(outputs):
    uri, names, results = absolute_uri(f"sqlite:///{outputs}/mlflow.db"), ["it's", 'a "b"', "排序"], []
    experiment = find_or_create_experiment(open_client(uri), "several sweeps", None)
    threads = [
        threading.Thread(
            target=lambda name=name: results.append((name, find_or_create_parent(open_client(uri), experiment, name)))
        )
        for name in names * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 9
    assert len(set(results)) == len({run_id for _, run_id in results}) == 3
