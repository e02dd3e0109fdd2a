"""Log the evaluation table to the run in MLflow: every number as a metric, the files as artifacts."""

import time
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bbu_train.evaluate.table import EvaluationTable
from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.mlflow_points import valid_name
from bbu_train.tracker.mlflow_run import KEY_FILE
from bbu_train.tracker.mlflow_sweep import find_runs_by_key

FOLDER = "evaluations"
MAX_METRICS = 1000  # MLflow's limit for one call of log_batch


def publish(cfg: DictConfig, table: EvaluationTable, folder: Path) -> str:
    """Log the table and the files of `folder`; return where they are in MLflow, or why they were not logged.

    Returns "" if the run does not use MLflow. A number that is already the latest value of its metric is not sent
    again.
    """
    if "mlflow" not in cfg.tracker:
        return ""
    key = Path(cfg.folder) / KEY_FILE

    def send(client: Any, experiment: str) -> str:
        from mlflow.entities import Metric

        runs = find_runs_by_key(client, experiment, key.read_text()) if key.exists() else []
        if not runs:
            return "not logged: MLflow has no run of this folder. Send it with python -m bbu_train.replay first."
        run_id, now = runs[0].info.run_id, int(1000 * time.time())
        logged = {(metric.key, metric.value, metric.step) for metric in runs[0].data.to_proto().metrics}
        named = ((valid_name(name), value) for name, value in table.metrics.items())
        new = (Metric(*pair, now, table.step) for pair in named if (*pair, table.step) not in logged)
        while batch := list(islice(new, MAX_METRICS)):
            client.log_batch(run_id, metrics=batch)
        client.log_artifacts(run_id, str(folder), f"{FOLDER}/{folder.name}")
        return f"run {run_id}, artifacts under {FOLDER}/{folder.name}/"

    return mlflow_finished_run.log_to_store(cfg.tracker.mlflow, send)
