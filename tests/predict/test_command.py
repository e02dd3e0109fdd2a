"""`python -m bbu_train.predict` on a run that was trained for two steps."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from bbu_train.data import jsonl
from bbu_train.data.teachers import TeacherDraw
from bbu_train.predict.__main__ import DEFAULTS, main
from bbu_train.train import train

SMALL = ["head.num_queries=12", "head.d_model=32", "head.num_heads=2", "head.num_caption_layers=1"]
FEW = ["data.num_train=6", "data.num_validation=3", "sampler.num_samples=2"]
STEPS = ["steps=2", "save_every=1", "eval_every=2", "schedule.num_warmup_steps=1", "tracker=jsonl", "threads=1"]


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    cfg = config(*SMALL, *FEW, *STEPS, f"outputs={tmp_path_factory.mktemp('outputs')}", "run=small")
    train(cfg)
    return cfg.folder


@pytest.fixture(scope="module")
def pictures(run, tmp_path_factory):
    """A folder with a validation picture of the run and four others: one turned by EXIF, two with unusual names."""
    folder = tmp_path_factory.mktemp("pictures")
    known = min((folder / run).parents[1].glob("data/*/*/pictures/validation*"))
    (folder / "a-known.jpg").symlink_to(known)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), "grey").save(folder / "b-turned.jpg", exif=exif)
    Image.new("RGB", (64, 64), "white").save(folder / "c-white.png")
    for name in (os.fsdecode("d-café.png".encode("latin-1")), "e" + "长" * 83 + ".png"):  # no UTF-8; 254 bytes
        shutil.copy(folder / "c-white.png", folder / name)
    return folder


def run_command(capsys, *words):
    """Return the exit code and what the program wrote to stderr."""
    code = main(words)
    return code, capsys.readouterr().err


def rows(folder, name="predictions.jsonl"):
    return [json.loads(row) for row in (folder / name).read_text().splitlines()]


def all_objects(row):
    return [*row["objects"], *row["unusable"]]


def test_each_picture_gets_a_line_and_a_drawing(run, pictures, tmp_path):
    assert main([f"run={run}", f"images={pictures}", "max_new_tokens=4", "threshold=0", f"out={tmp_path}/new"]) == 0
    lines, generated = rows(tmp_path / "new"), rows(tmp_path / "new", "generated.jsonl")
    assert [(row["width"], row["height"]) for row in lines[1:3]] == [(200, 300), (64, 64)]
    assert ["true_objects" in row for row in lines] == [True, False, False, False, False]
    assert [row["images"] for row in lines[1:]] == [[str(path)] for path in sorted(pictures.iterdir())[1:]]
    assert all(len(all_objects(row)) == 12 for row in lines)
    assert [(row["images"], row["drawn"]) for row in lines] == [(row["images"], row["drawn"]) for row in generated]
    assert all(row["is_malformed"] is True for row in generated)
    for row in lines:
        assert len(row["drawn"].encode()) <= 100
        with Image.open(tmp_path / "new" / row["drawn"]) as drawing:
            assert drawing.width > 1000


def test_both_files_are_data_sets_whatever_was_predicted(run, pictures, tmp_path):
    assert main([f"run={run}", f"images={pictures}", "max_new_tokens=4", "threshold=0", f"out={tmp_path}"]) == 0
    teachers = TeacherDraw(teacher_ratio=0, num_teachers=0, num_validation_teachers=0, seed=1, validation_seed=1)
    data = jsonl.load(tmp_path, "predictions.jsonl", "generated.jsonl", "error", teachers)
    for samples, name in ((data.train, "predictions.jsonl"), (data.validation, "generated.jsonl")):
        assert [len(sample.student.objects) for sample in samples] == [
            len(row["objects"]) for row in rows(tmp_path, name)
        ]
        assert [sample.student.path.resolve() for sample in samples] == [
            path.resolve() for path in sorted(pictures.iterdir())
        ]


def test_batches_and_single_pictures_with_teachers_give_the_same(run, pictures, tmp_path):
    words = [f"run={run}", f"images={pictures}/*", "max_new_tokens=4", "threshold=0", "teachers=1", "route=head"]
    assert main([*words, f"out={tmp_path}/together"]) == main([*words, "batch_size=1", f"out={tmp_path}/apart"]) == 0
    together, apart = rows(tmp_path / "together"), rows(tmp_path / "apart")
    assert all(len(row["teacher_images"]) == 1 for row in together)
    for row, other in zip(together, apart, strict=True):
        assert row["teacher_images"] == other["teacher_images"]
        for a, b in zip(all_objects(row), all_objects(other), strict=True):
            assert a["bbox_2d"] == pytest.approx(b["bbox_2d"], abs=0.05)


def test_a_run_without_its_data_predicts_without_true_boxes_but_not_with_teachers(run, pictures, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    stored = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(stored.replace("num_train: 6", "num_train: 0"))  # now the data cannot be built
    words = [f"run={moved}", f"images={pictures}/a-known.jpg", "max_new_tokens=1", "checkpoint=1"]
    assert main([*words, f"out={tmp_path}/new"]) == 0
    assert "true_objects" not in rows(tmp_path / "new")[0]
    code, error = run_command(capsys, *words, "teachers=1")
    assert (code, "num_train=0" in error) == (2, True)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rout=head", "rout is not a key. Did you mean route"),
        ("route=heads", "route is both, head or generated"),
        ("run=nowhere", "There is no run in"),
        ("checkpoint=7", "Steps saved there: 1, 2"),
        ("checkpoint=newest", "checkpoint is best, last or a step"),
        ("images=nowhere/*.jpg", "no file matches"),
        ("images=", "Say images="),
        ("teachers=-1", "at least 0"),
        ("teachers=99", "Take at most 6"),
        ("batch_size=0", "at least 1"),
        ("threshold=2", "from 0 to 1"),
        ("out=.", "is not empty"),
        ("seed", "not of the form key=value"),
    ],
)
def test_a_wrong_option_is_reported_before_the_model_loads(run, pictures, capsys, monkeypatch, word, message):
    monkeypatch.setattr(
        "bbu_train.predict.trained_run.TrainedRun.load_predictor", lambda *_: pytest.fail("the model was loaded")
    )
    words = {"run": f"run={run}", "images": f"images={pictures}"}
    code, error = run_command(capsys, *(words | {word.partition("=")[0]: word}).values())
    assert code == 2
    assert message in error


def test_a_run_without_a_head_predicts_only_by_the_generated_route(config, pictures, tmp_path, capsys):
    cfg = config("head=none", "loss=language", *FEW, *STEPS, f"outputs={tmp_path}", "run=bare")
    train(cfg)
    words = [f"run={cfg.folder}", f"images={pictures}/c-white.png", "max_new_tokens=1"]
    assert "Take route='generated'" in run_command(capsys, *words)[1]
    assert main([*words, "route=generated", "truth=false"]) == 0
    assert "so none is the best: the last one is taken, that of step" in capsys.readouterr().err


def test_a_run_whose_head_stays_random_scores_none_and_predicts_only_by_the_generated_route(
    config, pictures, tmp_path, capsys
):
    frozen = "optimizer.groups.detection.lr=0", "optimizer.groups.adapter.lr=0", "eval_every=1"
    train(cfg := config(*frozen, *SMALL, *FEW, *STEPS, f"outputs={tmp_path}", "run=frozen"))
    rows = [json.loads(line) for line in Path(cfg.folder, "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row if name.startswith("eval/")}
    assert "eval/loss/student_lm" in names
    assert all(name.startswith("eval/loss/") for name in names)
    assert "the head is not scored" in Path(cfg.folder, "train.log").read_text()
    words = [f"run={cfg.folder}", f"images={pictures}/c-white.png", "max_new_tokens=1", "checkpoint=last"]
    code, error = run_command(capsys, *words)
    assert code == 2
    assert "was never trained" in error
    assert "Take route='generated'" in error
    assert main([*words, "route=generated"]) == 0


def test_help_describes_every_key(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"\n  {key} " in usage for key in DEFAULTS)
