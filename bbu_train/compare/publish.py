"""The report as artifacts of the sweep's parent run in MLflow."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bbu_train.compare.sweep import SweepRun
from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.mlflow_sweep import find_or_create_parent

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "compare"


def publish(all_runs: Sequence[SweepRun], sweep: str, folder: Path) -> str:
    """Log all files of `folder`. Return where they went, or why they were not logged; "" if no run used MLflow."""
    run = next((run for run in all_runs if "mlflow" in (run.config.get("tracker") or {})), None)
    if run is None:
        return ""
    settings = run.config.tracker.mlflow

    def log_artifacts(client: "MlflowClient", experiment_id: str) -> str:
        run_id = find_or_create_parent(client, experiment_id, settings.get("sweep") or sweep)
        client.log_artifacts(run_id, str(folder), FOLDER)
        return f"run {run_id}, artifacts under {FOLDER}/"

    return mlflow_finished_run.log_to_store(settings, log_artifacts)
