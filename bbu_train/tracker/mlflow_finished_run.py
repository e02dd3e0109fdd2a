"""What is added to MLflow when runs have ended, by programs that came after them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bbu_train.tracker.mlflow_run import KEY_FILE
from bbu_train.tracker.mlflow_store import absolute_uri, be_quiet, find_or_create_experiment, open_client, transaction
from bbu_train.tracker.mlflow_sweep import PARENT, find_runs_by_key, show_progress


def log_to_store(settings: Mapping[str, Any], send: Callable[[Any, str], str]) -> str:
    """What `send(client, experiment_id)` says of a store that exists; else why nothing was logged.

    `settings` are those of a run's MLflow tracker.
    """
    uri = absolute_uri(settings["uri"])
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return f"not logged: there is no {uri}"
    be_quiet()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = open_client(uri)
        artifacts = None if settings["artifacts"] is None else Path(settings["artifacts"]).absolute()
        return send(client, find_or_create_experiment(client, settings["experiment"], artifacts))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        return f"not logged: {uri} does not answer: {' '.join(str(error).split())[:200]}"


def mark_pruned(settings: Mapping[str, Any], folder: Path) -> str:
    """Say that the run in `folder`, which seems to wait to go on, never will; what this says is as of `log_to_store`."""
    key = folder / KEY_FILE

    def send(client, experiment: str) -> str:
        known = find_runs_by_key(client, experiment, key.read_text()) if key.exists() else []
        if not known:
            return "not logged: MLflow has no run of this folder."
        run_id = known[0].info.run_id
        with transaction(client.tracking_uri):
            client.set_tag(run_id, "state", "pruned")
            client.set_terminated(run_id, "KILLED")
            if (parent_id := known[0].data.tags.get(PARENT)) is not None:
                show_progress(client, experiment, parent_id)
        return f"run {run_id}"

    return log_to_store(settings, send)
