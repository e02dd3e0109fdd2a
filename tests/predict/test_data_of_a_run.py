"""Evaluation and prediction say, before the model loads, if the data is not what the run was trained on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from bbu_train.checkpoint.committed import Checkpoint
from bbu_train.errors import InputError
from bbu_train.evaluate.__main__ import main as evaluate
from bbu_train.predict import trained_run
from bbu_train.predict.__main__ import main as predict
from bbu_train.runs import folder as run_folder
from bbu_train.runs.data_fingerprint import keep_record
from bbu_train.runs.resume import resolve_run


def write_data(root, names="abc", x=1):
    root.mkdir()
    for name in names:
        Image.new("RGB", (84, 56), (ord(name), 0, 0)).save(root / f"{name}.png")
    objects = [{"bbox_2d": [x, 2, 30, 40], "desc": "screw"}]
    lines = [json.dumps({"images": [f"{name}.png"], "objects": objects}) + "\n" for name in names]
    (root / "train.jsonl").write_text("".join(lines[:2]))
    (root / "validation.jsonl").write_text(lines[2])
    return root


@pytest.fixture
def run(config, tmp_path, monkeypatch):
    """The folder of a run that has begun, without its weights."""
    words = [
        "data=jsonl",
        "data.teachers.num_teachers=1",
        f"data.root={write_data(tmp_path / 'data')}",
        f"outputs={tmp_path}/outputs",
    ]
    cfg = resolve_run(config(*words), "default", [*words, "run=r"], in_sweep=False)
    folder = Path(cfg.folder)
    folder.mkdir(parents=True)
    keep_record(cfg, folder)
    (folder / run_folder.CONFIG).write_text(run_folder.as_yaml(cfg))
    monkeypatch.setattr(trained_run.TrainedRun, "_find_checkpoint", lambda *_: Checkpoint(folder, 1))
    return folder


@pytest.fixture(params=["evaluate", "predict"])
def say(request, run, tmp_path, monkeypatch, capsys):
    """A function from words to the lines that the program writes to stderr until it loads the model."""

    def load(*_):
        raise InputError("the model loads now")

    def call(*words):
        monkeypatch.setattr(trained_run.TrainedRun, "load_predictor", load)
        program = {"evaluate": evaluate, "predict": predict}[request.param]
        images = [f"images={tmp_path}/data/c.png"] if request.param == "predict" else []
        assert program([f"run={run}", *images, "teachers=1", *words]) == 2
        *lines, last = capsys.readouterr().err.splitlines()
        assert last == "error: the model loads now"
        return lines

    return call


def test_the_same_data_is_evaluated_without_a_word_wherever_it_lies(say, tmp_path):
    assert say() == []
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert say(f"data.root={tmp_path}/moved") == []


@pytest.mark.parametrize("words", [(), ("data.root={}/other",)])
def test_data_that_changed_is_one_warning_with_what_changed(say, run, tmp_path, words):
    write_data(tmp_path / "other", x=3)
    if not words:
        shutil.rmtree(tmp_path / "data")
        (tmp_path / "other").rename(tmp_path / "data")
    (warning,) = say(*[word.format(tmp_path) for word in words])
    assert f"the run in {run}" in warning
    assert "train: 2 changed: line 1 (a.png), line 2 (b.png); validation: 1 changed: line 1 (c.png)" in warning


def test_a_split_of_its_own_is_no_change(run, tmp_path, monkeypatch, capsys):
    shutil.copy(tmp_path / "data/validation.jsonl", tmp_path / "data/test.jsonl")
    monkeypatch.setattr(trained_run.TrainedRun, "load_predictor", lambda *_: (_ for _ in ()).throw(InputError("loads")))
    assert evaluate([f"run={run}", "split=test", "teachers=0"]) == 2
    assert capsys.readouterr().err == "error: loads\n"


def test_a_root_for_a_run_that_draws_its_pictures_is_refused(config, tmp_path, monkeypatch, capsys):
    cfg = config(f"outputs={tmp_path}/outputs")
    Path(cfg.folder).mkdir(parents=True)
    (Path(cfg.folder) / run_folder.CONFIG).write_text(run_folder.as_yaml(cfg))
    monkeypatch.setattr(trained_run.TrainedRun, "_find_checkpoint", lambda *_: Checkpoint(Path(cfg.folder), 1))
    assert evaluate([f"run={cfg.folder}", f"data.root={tmp_path}/data"]) == 2
    assert "draws its pictures itself" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("metrics", "threshold"),
    [({}, 0.5), ({"eval/f1": 0.0, "eval/f1_threshold": 1.0}, 0.5), ({"eval/f1": 0.3, "eval/f1_threshold": 0.8}, 0.8)],
)
def test_boxes_are_kept_above_the_threshold_of_the_best_f1_unless_none_was_found(run, metrics, threshold):
    found = trained_run.TrainedRun(str(run), "last", "head")
    found.saved = SimpleNamespace(metrics=metrics)
    assert found.threshold == threshold
