"""The table on the run's own run in MLflow: every number as a metric, the files as artifacts."""

import time
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from bbu_train.evaluate.table import Scores
from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.mlflow_points import proper_name
from bbu_train.tracker.mlflow_run import KEY_FILE
from bbu_train.tracker.mlflow_sweep import find_runs_by_key

FOLDER = "evaluations"
MAX_METRICS = 1000  # of one call: a limit of MLflow's


def publish(cfg: DictConfig, scores: Scores, folder: Path) -> str:
    """Say where it went, or why not; nothing, where the run has no MLflow. The files on disk are there in any case.

    A number that is the last of its metric already is not sent again.
    """
    if "mlflow" not in cfg.tracker:
        return ""
    key = Path(cfg.folder) / KEY_FILE

    def send(client, experiment: str) -> str:
        from mlflow.entities import Metric

        known = find_runs_by_key(client, experiment, key.read_text()) if key.exists() else []
        if not known:
            return "not logged: MLflow has no run of this folder. Send it with python -m bbu_train.replay first."
        run_id, now = known[0].info.run_id, int(1000 * time.time())
        there = {(point.key, point.value, point.step) for point in known[0].data.to_proto().metrics}
        named = ((proper_name(name), value) for name, value in scores.metrics.items())
        points = (Metric(*pair, now, scores.step) for pair in named if (*pair, scores.step) not in there)
        while batch := list(islice(points, MAX_METRICS)):
            client.log_batch(run_id, metrics=batch)
        client.log_artifacts(run_id, str(folder), f"{FOLDER}/{folder.name}")
        return f"run {run_id}, artifacts under {FOLDER}/{folder.name}/"

    return mlflow_finished_run.log_to_store(cfg.tracker.mlflow, send)
