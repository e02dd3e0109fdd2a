"""A store of MLflow for each test."""

import shutil

import pytest


@pytest.fixture
def outputs(tmp_path, empty_store):
    """A folder with an empty store, whose name a URI or a shell would read otherwise."""
    folder = tmp_path / "输出 of 1? %20#1"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder
