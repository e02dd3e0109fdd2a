"""The comparison as artifacts of the sweep's parent run in MLflow."""

from collections.abc import Sequence
from pathlib import Path

from bbu_train.compare.sweep import SweepRun
from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.mlflow_sweep import find_or_create_parent

FOLDER = "compare"


def publish(all_runs: Sequence[SweepRun], sweep: str, folder: Path) -> str:
    """Log all files of `folder`; say where they went, or why not. The pages on disk are there in either case."""
    run = next((run for run in all_runs if "mlflow" in (run.config.get("tracker") or {})), None)
    if run is None:
        return ""
    settings = run.config.tracker.mlflow

    def send(client, experiment: str) -> str:
        run_id = find_or_create_parent(client, experiment, settings.get("sweep") or sweep)
        client.log_artifacts(run_id, str(folder), FOLDER)
        return f"run {run_id}, artifacts under {FOLDER}/"

    return mlflow_finished_run.log_to_store(settings, send)
