"""Results are for a group: files and folders have the permissions that the umask of the tests, 002, leaves."""

import shutil

import pytest
from PIL import Image
from whole_runs import CONF

from bbu_train.compare import __main__ as compare
from bbu_train.export import __main__ as export
from bbu_train.predict import __main__ as predict
from launchers.cells import compose
from launchers.ledger import Ledger
from launchers.lock import locked


@pytest.fixture
def group_outputs(uninterrupted, empty_store, tmp_path):
    """A folder with a whole run, what compare, predict and export make of it, a store of MLflow and a ledger."""
    outputs = tmp_path / "outputs"
    run = shutil.copytree(uninterrupted, outputs / uninterrupted.parent.name / uninterrupted.name)  # keeps permissions
    shutil.copytree(empty_store.parent, outputs / "store")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    words = "route=head", "truth=false", "teachers=0", "checkpoint=last", "threshold=0"
    assert predict.main([f"run={run}", f"images={tmp_path}/a.png", *words]) == 0
    assert compare.main([f"sweep={run.parent.name}", f"outputs={outputs}", "metric=loss/total"]) == 0
    assert export.main([f"run={run}", f"to={outputs}/exported", "checkpoint=last"]) == 0
    ledger = Ledger(outputs / "sweep/ledger")
    with locked(ledger.folder):
        (entry,) = ledger.add(compose(["-m", "hydra/launcher=local", "sweep=sweep", f"outputs={outputs}"], CONF))
    entry.add_attempt().begin("local/here/1/1")
    return outputs


def test_what_others_shall_read_follows_the_umask(group_outputs):
    paths = {path: path.stat().st_mode & 0o777 for path in group_outputs.rglob("*")}
    names = {path.name for path in paths}
    expected = {"metrics.jsonl", "model.safetensors", "state.pt", "predictions.jsonl", "index.html", "mlflow.db"}
    assert expected | {"cell.json", "state.json", ".lock"} <= names
    wrong = {str(path): oct(mode) for path, mode in paths.items() if mode != (0o775 if path.is_dir() else 0o664)}
    assert not wrong
