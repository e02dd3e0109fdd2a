"""The report on the page of the sweep's parent run in MLflow: files as artifacts, the leaderboard as description."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bbu_train.compare import report
from bbu_train.compare.comparison import Comparison
from bbu_train.reporting.tables import Table, as_markdown
from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.mlflow_sweep import NOTE, find_or_create_parent, sweep_note
from bbu_train.tracker.mlflow_view import artifact_page

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "compare"
MAX_ROWS = 20  # of the leaderboard in the description; the page has all
MAX_NOTE_CHARACTERS = 8000  # of a tag, in MLflow's stores


def publish(comparison: Comparison, sweep: str, folder: Path) -> str:
    """Log all files of `folder`. Return where they went, or why they were not logged; "" if no run used MLflow."""
    runs = [scored.run for scored in comparison.scored]
    run = next((run for run in runs if "mlflow" in (run.config.get("tracker") or {})), None)
    if run is None:
        return ""
    settings = run.config.tracker.mlflow

    def log_artifacts(client: "MlflowClient", experiment_id: str) -> str:
        run_id = find_or_create_parent(client, experiment_id, settings.get("sweep") or sweep)
        client.log_artifacts(run_id, str(folder), FOLDER)
        client.set_tag(run_id, NOTE, _note(comparison, folder, experiment_id, run_id))
        return f"run {run_id}, artifacts under {FOLDER}/"

    return mlflow_finished_run.log_to_store(settings, log_artifacts)


def _note(comparison: Comparison, folder: Path, experiment_id: str, run_id: str) -> str:
    """Return what the parent's page shows, in Markdown: leaderboard, summary, plots, and links to page and cells."""
    page = artifact_page(experiment_id, run_id, f"{FOLDER}/{report.PAGE}")
    plots = [
        f"{caption}:\n\n![{caption}](get-artifact?path={quote(f'{FOLDER}/{name}', safe='')}&run_uuid={run_id})"
        for name, caption in report.CAPTIONS.items()
        if (folder / name).exists()
    ]
    before = [f"[The whole comparison]({page})"]  # first, with the leaderboard, because MLflow folds what is below
    after = ["  \n".join(comparison.summary), *plots, sweep_note(experiment_id)]
    for num_rows in range(MAX_ROWS, 0, -1):  # keys and names of runs may be long
        note = "\n\n".join([*before, _first_rows(comparison.leaderboard, num_rows), *after])
        if len(note) <= MAX_NOTE_CHARACTERS:
            return note
    return "\n\n".join([before[-1], after[-1]])


def _first_rows(leaderboard: Table, num_rows: int) -> str:
    return as_markdown(replace(leaderboard, rows=leaderboard.rows[:num_rows]))
