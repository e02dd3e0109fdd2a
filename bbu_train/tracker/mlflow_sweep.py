"""A sweep in MLflow: a parent run with the sweep's cells below it. Runs that must exist once are created here."""

import hashlib
from typing import TYPE_CHECKING

from bbu_train.tracker.mlflow_store import exclusive_access

if TYPE_CHECKING:
    import mlflow
    import mlflow.entities

PARENT = "mlflow.parentRunId"
KEY = "mlflow.bbu_train.key"  # MLflow's pages hide tags with the prefix mlflow.
ENDED = ("FINISHED", "FAILED", "KILLED")


def find_or_create_parent(client: "mlflow.MlflowClient", experiment_id: str, sweep: str) -> str:
    """Return the id of the sweep's run, which the first call creates. Several jobs may call it at the same time.

    The caller must hold no lock of the store.
    """
    key = f"sweep-{hashlib.sha256(sweep.encode()).hexdigest()[:16]}"  # a filter cannot quote every name
    with exclusive_access(client.tracking_uri):
        tags = {"sweep": sweep, "mlflow.source.name": "bbu_train", "mlflow.note.content": _note(experiment_id)}
        return find_or_create_run(client, experiment_id, key, sweep, tags).info.run_id


def _note(experiment_id: str) -> str:
    """Return links to all cells. MLflow shows a sweep collapsed, without curves, unless it is sorted by a metric."""
    sorted_runs = f"#/experiments/{experiment_id}/runs?orderByKey=metrics.%60eval%2Fap50%60&orderByAsc=false"
    return (
        f"The cells of this sweep, best `eval/ap50` first: [curves]({sorted_runs}&compareRunsMode=CHART), "
        f"[table]({sorted_runs}). Parameters are the overrides of the command; "
        "the whole config is `config.yaml` among the artifacts."
    )


def find_or_create_run(
    client: "mlflow.MlflowClient", experiment_id: str, key: str, name: str, tags: dict[str, str]
) -> "mlflow.entities.Run":
    """Return the run whose tag KEY has this value.

    A run has its key from the moment it is created. So a process that is killed at that moment, or gets no answer,
    finds its run at the next try. If several processes created one at the same time, all take the oldest and the others
    are deleted.
    """
    runs = find_runs_by_key(client, experiment_id, key)
    if not runs:
        client.create_run(experiment_id, run_name=name, tags={KEY: key, **tags})
        runs = find_runs_by_key(client, experiment_id, key)
    for younger in runs[1:]:
        _delete(client, younger.info.run_id)
    return runs[0]


def find_runs_by_key(client: "mlflow.MlflowClient", experiment_id: str, key: str) -> list["mlflow.entities.Run"]:
    """Return the runs whose tag KEY has this value, oldest first."""
    runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'")
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _delete(client: "mlflow.MlflowClient", run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_run(run_id)
    except MlflowException as error:
        # Another process may have deleted it first.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise


def update_parent_status(client: "mlflow.MlflowClient", experiment_id: str, parent_id: str) -> None:
    """Set the parent to running while any cell runs or waits to be resumed, else to finished, even if cells failed."""
    not_ended = " and ".join(f"attributes.status != '{status}'" for status in ENDED)
    cells = client.search_runs([experiment_id], f"tags.{PARENT} = '{parent_id}' and {not_ended}", max_results=1)
    if cells:
        client.update_run(parent_id, status="RUNNING")
    else:
        client.set_terminated(parent_id, "FINISHED")
