"""A sweep in MLflow: one parent run, its cells below it. Whatever must exist once is found or made here."""

import hashlib

from bbu_train.tracker.mlflow_store import alone

PARENT = "mlflow.parentRunId"
KEY = "mlflow.bbu_train.key"  # MLflow's pages leave out tags that begin so
ENDED = ("FINISHED", "FAILED", "KILLED")


def find_or_create_parent(client, experiment_id: str, sweep: str) -> str:
    """The id of the run that stands for the sweep, made at the first call. To be called with no lock of the store held.

    Several jobs may call it at the same moment.
    """
    key = f"sweep-{hashlib.sha256(sweep.encode()).hexdigest()[:16]}"  # a name may hold what a filter cannot quote
    with alone(client.tracking_uri):
        tags = {"sweep": sweep, "mlflow.source.name": "bbu_train", "mlflow.note.content": _note(experiment_id)}
        return find_or_create_run(client, experiment_id, key, sweep, tags).info.run_id


def _note(experiment_id: str) -> str:
    """Links to all cells at once. MLflow opens a sweep folded, without its curves; sorted by a metric it is flat."""
    sorted_runs = f"#/experiments/{experiment_id}/runs?orderByKey=metrics.%60eval%2Fap50%60&orderByAsc=false"
    return (
        f"The cells of this sweep, best `eval/ap50` first: [curves]({sorted_runs}&compareRunsMode=CHART), "
        f"[table]({sorted_runs}). Parameters are what the command gave; all is in `config.yaml` among the artifacts."
    )


def find_or_create_run(client, experiment_id: str, key: str, name: str, tags: dict[str, str]):
    """The run whose tag KEY has this value.

    The key is part of the run from the moment it is made: a process that is killed right then, or hears no answer,
    finds its run when it tries again. Where several made one at once, all take the oldest and the others are deleted.
    """
    runs = find_runs_by_key(client, experiment_id, key)
    if not runs:
        client.create_run(experiment_id, run_name=name, tags={KEY: key, **tags})
        runs = find_runs_by_key(client, experiment_id, key)
    for younger in runs[1:]:
        _delete(client, younger.info.run_id)
    return runs[0]


def find_runs_by_key(client, experiment_id: str, key: str) -> list:
    """The runs whose tag KEY has this value, oldest first."""
    runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'")
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _delete(client, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # another was quicker
            raise


def show_progress(client, experiment_id: str, parent_id: str) -> None:
    """The parent runs while a cell of it runs, or waits to go on. Failed cells do not make it fail."""
    not_ended = " and ".join(f"attributes.status != '{status}'" for status in ENDED)
    cells = client.search_runs([experiment_id], f"tags.{PARENT} = '{parent_id}' and {not_ended}", max_results=1)
    if cells:
        client.update_run(parent_id, status="RUNNING")
    else:
        client.set_terminated(parent_id, "FINISHED")
