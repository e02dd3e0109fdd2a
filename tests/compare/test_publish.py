import shutil

import pytest
import sweeps
from sweeps import add_run

from bbu_train.compare.comparison import compare
from bbu_train.compare.publish import FOLDER, _note, publish
from bbu_train.tracker.mlflow_store import find_or_create_experiment, open_client


@pytest.fixture
def report_folder(outputs):
    folder = outputs / sweeps.NAME / "compare"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("page")
    return folder


def publish_report(outputs, report_folder):
    return publish(compare(outputs, sweeps.NAME, "eval/ap50", "max", "last"), sweeps.NAME, report_folder)


def test_the_page_becomes_an_artifact_of_the_sweeps_parent_run(outputs, report_folder, empty_store):
    mlflow_sweep = pytest.importorskip("bbu_train.tracker.mlflow_sweep")
    add_run(outputs, [], 0.4)
    shutil.copy(empty_store, outputs)
    client = open_client(f"sqlite:///{outputs}/mlflow.db")
    experiment = find_or_create_experiment(client, sweeps.NAME, outputs / "mlflow-artifacts")
    message = publish_report(outputs, report_folder)
    parent = mlflow_sweep.find_or_create_parent(client, experiment, sweeps.NAME)
    assert parent in message
    assert [file.path for file in client.list_artifacts(parent, FOLDER)] == ["compare/index.html"]
    note = client.get_run(parent).data.tags["mlflow.note.content"]
    assert "| rank | eval/ap50 |" in note
    assert f"#/experiments/{experiment}/runs/{parent}/artifacts/compare/index.html" in note


def test_the_description_of_the_parent_fits_into_a_tag_and_shows_the_best(outputs, report_folder):
    for number in range(30):
        add_run(outputs, [f"model.checkpoint=/{'x' * 400}/{number}"], number / 100)
    result = compare(outputs, sweeps.NAME, "eval/ap50", "max", "last")
    note = _note(result, report_folder, "1", "r")
    assert len(note) <= 8000
    assert "| 1 | 0.29 |" in note


def test_without_a_store_none_is_created(outputs, report_folder):
    pytest.importorskip("bbu_train.tracker.mlflow_sweep")
    add_run(outputs, [], 0.4)
    assert publish_report(outputs, report_folder).startswith("not logged")
    assert not (outputs / "mlflow.db").exists()


def test_runs_without_mlflow_are_not_logged(outputs, report_folder):
    add_run(outputs, ["tracker=jsonl"], 0.4)
    assert publish_report(outputs, report_folder) == ""
