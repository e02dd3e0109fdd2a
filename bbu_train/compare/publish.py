"""The comparison as artifacts of the sweep's parent run in MLflow."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from bbu_train.compare.sweep import Run
from bbu_train.tracker.mlflow_store import absolute_uri, be_quiet, experiment_id, open_client

FOLDER = "compare"


def publish(all_runs: Sequence[Run], sweep: str, folder: Path) -> str:
    """Log all files of `folder`; say where they went, or why not. The pages on disk are there in either case."""
    run = next((run for run in all_runs if "mlflow" in (run.config.get("tracker") or {})), None)
    if run is None or importlib.util.find_spec("bbu_train.tracker.mlflow_sweep") is None:
        return ""
    settings = run.config.tracker.mlflow
    uri = absolute_uri(settings.uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return f"not logged: there is no {uri}"
    be_quiet()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from bbu_train.tracker.mlflow_sweep import parent_run

    try:
        client = open_client(uri)
        artifacts = None if settings.artifacts is None else Path(settings.artifacts).absolute()
        experiment = experiment_id(client, settings.experiment, artifacts)
        run_id = parent_run(client, experiment, settings.get("sweep") or sweep)
        client.log_artifacts(run_id, str(folder), FOLDER)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        return f"not logged: {uri} does not answer: {' '.join(str(error).split())[:200]}"
    return f"run {run_id}, artifacts under {FOLDER}/"
