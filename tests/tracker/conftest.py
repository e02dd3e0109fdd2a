"""An SQLite store that is created once: creating one takes two seconds, copying it none."""

import shutil

import pytest

from bbu_train.tracker.mlflow_store import open_client, silence_mlflow


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """The path of an SQLite store without runs. Copy it."""
    silence_mlflow()
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def outputs(tmp_path, empty_store):
    """A folder with an empty store, whose name a URI or a shell would read otherwise."""
    folder = tmp_path / "输出 of 1? %20#1"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder
