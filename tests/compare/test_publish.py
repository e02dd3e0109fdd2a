import pytest
from sweeps import add_run

from bbu_train.compare import publish as module
from bbu_train.compare.publish import publish
from bbu_train.compare.sweep import read
from bbu_train.tracker.mlflow_store import find_or_create_experiment, open_client


@pytest.fixture
def page(outputs):
    folder = outputs / "made/compare"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("page")
    return folder


def test_the_page_becomes_an_artifact_of_the_sweeps_parent_run(outputs, page):
    sweep = pytest.importorskip("bbu_train.tracker.mlflow_sweep")
    add_run(outputs, [], 0.4)
    client = open_client(f"sqlite:///{outputs}/mlflow.db")
    experiment = find_or_create_experiment(client, "made", outputs / "mlflow-artifacts")
    said = publish(read(outputs / "made")[0], "made", page)
    parent = sweep.find_or_create_parent(client, experiment, "made")
    assert parent in said
    assert [file.path for file in client.list_artifacts(parent, module.FOLDER)] == ["compare/index.html"]


def test_without_a_store_nothing_is_made(outputs, page):
    pytest.importorskip("bbu_train.tracker.mlflow_sweep")
    add_run(outputs, [], 0.4)
    assert publish(read(outputs / "made")[0], "made", page).startswith("not logged")
    assert not (outputs / "mlflow.db").exists()


def test_runs_without_mlflow_are_not_logged(outputs, page):
    add_run(outputs, ["tracker=jsonl"], 0.4)
    assert publish(read(outputs / "made")[0], "made", page) == ""
