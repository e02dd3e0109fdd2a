"""What is added to MLflow when runs have ended, by programs that came after them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bbu_train.tracker.mlflow_store import absolute_uri, be_quiet, experiment_id, open_client


def add(settings: Mapping[str, Any], send: Callable[[Any, str], str]) -> str:
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
        return send(client, experiment_id(client, settings["experiment"], artifacts))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        return f"not logged: {uri} does not answer: {' '.join(str(error).split())[:200]}"
