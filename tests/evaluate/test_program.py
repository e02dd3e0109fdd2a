"""`python -m bbu_train.evaluate` on a run of two steps that is logged to MLflow."""

import csv
import json
import shutil

import pytest
from PIL import Image

from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.evaluate.__main__ import DEFAULTS, main
from bbu_train.runs import folder as run_folder
from bbu_train.runs.names import folder_name
from bbu_train.tracker.mlflow_store import open_client

FEW_TOKENS = "max_new_tokens=4"


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    few = "steps=2", "eval_every=2", "save_every=2", "schedule.num_warmup_steps=1"
    return run("evaluated", "tracker=mlflow", f"tracker.mlflow.uri={store}", *few)


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """The folder of an evaluation of both routes with 0, 1 and 2 teachers."""
    out = tmp_path_factory.mktemp("evaluations") / "first"
    assert main([f"run={trained}", FEW_TOKENS, f"out={out}"]) == 0
    return out


def table(folder):
    return json.loads((folder / "table.json").read_text())


def without_seconds(folder):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table(folder)["rows"]]


def test_the_table_has_a_row_for_each_route_and_number_of_teachers(evaluated):
    rows = table(evaluated)["rows"]
    pairs = [(row["route"], row["teachers"]) for row in rows]
    assert pairs == [(route, num_teachers) for route in ("head", "generated") for num_teachers in range(3)]
    assert all(row["pictures"] == 4 and row["seconds"] > 0 for row in rows)
    assert [row["malformed"] for row in rows] == [None] * 3 + [1.0] * 3
    with (evaluated / "table.csv").open(encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert [{name: str("" if value is None else value) for name, value in row.items()} for row in rows] == cells
    with Image.open(evaluated / "table.png") as picture:
        assert picture.width > 1000


def test_the_heads_metrics_are_those_of_training(trained, evaluated):
    """Training evaluates with one teacher, so this is the second row."""
    cfg = run_folder.load(trained)
    metrics = LocalCheckpoints(trained / "checkpoints", 2, cfg.checkpoint.best_metric, "max").at(2).metrics
    row = table(evaluated)["rows"][1]
    for name in ("ap", "ap50", "ap75", "agnostic_ap50", "f1"):
        assert row[name] == pytest.approx(metrics[f"eval/{name}"], abs=1e-4)
    assert row["student_lm"] == pytest.approx(metrics["eval/loss/student_lm"], rel=1e-5)


def test_a_second_evaluation_gives_the_same_numbers(trained, evaluated, tmp_path):
    words = [f"run={trained}", FEW_TOKENS, "checkpoint=last", "num_workers=1", "teachers=[0,2]"]
    assert main([*words, f"out={tmp_path}/again"]) == 0
    assert without_seconds(tmp_path / "again") == [row for row in without_seconds(evaluated) if row["teachers"] != 1]


def test_a_run_whose_config_lacks_a_key_that_is_needed_now_is_refused(trained, tmp_path, capsys):
    older = tmp_path / "older"
    shutil.copytree(trained, older)
    config = (older / "config.yaml").read_text()
    (older / "config.yaml").write_text(
        "".join(line for line in config.splitlines(True) if "image_position_scale" not in line)
    )
    (older / run_folder.ENVIRONMENT).write_text('{"git_commit": "abc123"}')
    assert main([f"run={older}", "checkpoint=last", f"out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert f"The run in {older} was made by other code: " in error
    assert "'image_position_scale'" in error


def test_mlflow_has_every_number_and_every_file(trained, evaluated):
    client = open_client(run_folder.load(trained).tracker.mlflow.uri)
    [experiment] = [each for each in client.search_experiments() if each.name == "smoke"]
    [stored] = client.search_runs([experiment.experiment_id])
    rows = table(evaluated)["rows"]
    gain = rows[0]["student_lm"] - rows[1]["student_lm"]
    assert stored.data.metrics["eval/in_context_gain"] == pytest.approx(gain)
    assert stored.data.metrics["eval/head/teachers_2/ap50"] == rows[2]["ap50"]
    [point] = client.get_metric_history(stored.info.run_id, "eval/generated/teachers_0/malformed")
    assert (point.step, point.value) == (2, 1.0)
    assert "environment.json" in [file.path for file in client.list_artifacts(stored.info.run_id)]
    files = [file.path for file in client.list_artifacts(stored.info.run_id, f"evaluations/{evaluated.name}")]
    assert sorted(files) == [f"evaluations/{evaluated.name}/table.{kind}" for kind in ("csv", "json", "png")]
    assert (stored.info.status, stored.data.tags["state"]) == ("FINISHED", "done")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rout=head", "rout is not a key. Did you mean route"),
        ("run=", "Say run="),
        ("run=nowhere", "There is no run in"),
        ("checkpoint=7", "Steps saved there: 2"),
        ("route=heads", "route is both, head or generated"),
        ("teachers=[0,-1]", "a list of whole numbers"),
        ("teachers=many", "a list of whole numbers"),
        ("teachers=[0,99]", "Take at most 24"),
        ("split=test", "has train and validation only"),
        ("batch_size=0", "at least 1"),
        ("num_workers=-1", "at least 0"),
        ("out=.", "is not empty"),
    ],
)
def test_a_wrong_option_is_reported_before_the_model_loads(trained, capsys, monkeypatch, word, message):
    monkeypatch.setattr(
        "bbu_train.predict.trained_run.TrainedRun.load_predictor", lambda *_: pytest.fail("the model was loaded")
    )
    words = {"run": f"run={trained}", "teachers": "teachers=[0]"} | {word.partition("=")[0]: word}
    assert main(list(words.values())) == 2
    assert message in capsys.readouterr().err


def test_help_describes_every_key(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"\n  {key} " in usage for key in DEFAULTS)


def test_a_run_is_evaluated_by_its_whole_name(trained, tmp_path):
    name = "n" * 300
    (tmp_path / folder_name(name)).symlink_to(trained)
    assert main([f"run={tmp_path}/{name}", "route=head", "teachers=[0]"]) == 0
    assert any((tmp_path / folder_name(name) / "evaluations").glob("*/table.json"))
