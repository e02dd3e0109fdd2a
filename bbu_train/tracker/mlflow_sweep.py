"""A sweep in MLflow: a parent run with the sweep's cells below it. Runs that must exist once are created here."""

import hashlib
from typing import TYPE_CHECKING

from bbu_train.tracker.mlflow_store import exclusive_access
from bbu_train.tracker.mlflow_view import runs_page

if TYPE_CHECKING:
    import mlflow
    import mlflow.entities

PARENT = "mlflow.parentRunId"
KEY = "mlflow.bbu_train.key"  # MLflow's pages hide tags with the prefix mlflow.
NOTE = "mlflow.note.content"  # the description on a run's page, in Markdown
ENDED = ("FINISHED", "FAILED", "KILLED")


def find_or_create_parent(client: "mlflow.MlflowClient", experiment_id: str, sweep: str) -> str:
    """Return the id of the sweep's run, which the first call creates. Several jobs may call it at the same time.

    The caller must hold no lock of the store.
    """
    key = f"sweep-{hashlib.sha256(sweep.encode()).hexdigest()[:16]}"  # a filter cannot quote every name
    with exclusive_access(client.tracking_uri):
        note = f"{sweep_note(experiment_id)}\n\n`python -m bbu_train.compare sweep={sweep}` adds the leaderboard here."
        tags = {"sweep": sweep, "mlflow.source.name": "bbu_train", NOTE: note}
        return find_or_create_run(client, experiment_id, key, sweep, tags).info.run_id


def sweep_note(experiment_id: str) -> str:
    """Return links to all cells, in Markdown."""
    page = runs_page("", experiment_id)
    return f"The cells of this sweep: [table]({page}), [curves]({page}&compareRunsMode=CHART)."


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
