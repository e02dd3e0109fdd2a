"""Adding to the MLflow run of a training run that has ended, from other programs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu_train.tracker.mlflow_run import KEY_FILE
from bbu_train.tracker.mlflow_store import (
    absolute_uri,
    database,
    find_or_create_experiment,
    no_fork,
    open_client,
    silence_mlflow,
)
from bbu_train.tracker.mlflow_sweep import PARENT, find_runs_by_key, update_parent_status

if TYPE_CHECKING:
    import mlflow


def log_to_store(settings: Mapping[str, Any], send: Callable[["mlflow.MlflowClient", str], str]) -> str:
    """Return the message of `send(client, experiment_id)`, or why nothing was logged if the store does not answer.

    `settings` are those of a run's MLflow tracker. A local store that does not exist is not created.
    """
    uri = absolute_uri(settings["uri"])
    if (file := database(uri)) is not None and not file.exists():
        return f"not logged: there is no {uri}"
    silence_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = open_client(uri)
        artifacts = None if settings["artifacts"] is None else Path(settings["artifacts"]).absolute()
        return send(client, find_or_create_experiment(client, settings["experiment"], artifacts))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        return f"not logged: {uri} does not answer: {' '.join(str(error).split())[:200]}"


def mark_pruned(settings: Mapping[str, Any], folder: Path) -> str:
    """Mark the preempted run in `folder` as pruned, as it will not be resumed. Return `log_to_store`'s message."""
    key = folder / KEY_FILE

    def send(client: "mlflow.MlflowClient", experiment: str) -> str:
        runs = find_runs_by_key(client, experiment, key.read_text()) if key.exists() else []
        if not runs:
            return "not logged: MLflow has no run of this folder."
        run_id = runs[0].info.run_id
        with no_fork(client.tracking_uri):
            client.set_tag(run_id, "state", "pruned")
            client.set_terminated(run_id, "KILLED")
            if (parent_id := runs[0].data.tags.get(PARENT)) is not None:
                update_parent_status(client, experiment, parent_id)
        return f"run {run_id}, marked as pruned"

    return log_to_store(settings, send)
