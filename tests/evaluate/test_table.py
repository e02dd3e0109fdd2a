import json

import pytest

from bbu_train.evaluate import output_files
from bbu_train.evaluate.measure import EvaluationRow
from bbu_train.evaluate.table import Scores


@pytest.fixture
def scores():
    """A head that teachers help and a writer that finds nothing; one class has a Chinese name."""
    found = {"ap": 0.2, "ap50": 0.4, "f1": 0.5, "ap50/螺丝": 0.4, "student_lm": 2.0, "seconds": 0.1}
    better = found | {"ap50": 0.5, "f1": 0.7, "student_lm": 1.5}
    best = found | {"ap50": 0.6, "student_lm": 1.25}
    nothing = {"student_lm": 2.0, "malformed": 1.0, "seconds": 2.0}
    rows = [EvaluationRow("head", number, 3, its) for number, its in enumerate((found, better, best))]
    return Scores("outputs/a/b", 7, "test", (*rows, EvaluationRow("generated", 0, 3, nothing)))


def test_the_gain_is_the_fall_of_the_loss_and_the_rise_of_each_route(scores):
    assert scores.gains == pytest.approx(
        {
            "in_context_gain": 0.5,
            "in_context_gain/teachers_2": 0.75,
            "in_context_gain/head_ap50": 0.1,
            "in_context_gain/head_ap50/teachers_2": 0.2,
            "in_context_gain/head_f1": 0.2,
            "in_context_gain/head_f1/teachers_2": 0.0,
        }
    )


def test_without_a_row_without_teachers_there_is_no_gain(scores):
    assert Scores("run", 7, "test", scores.rows[1:3]).gains == {}


def test_metrics_of_validation_are_evaluations_and_those_of_another_split_have_its_name(scores):
    assert scores.metrics["test/head/teachers_1/ap50"] == 0.5
    assert scores.metrics["test/in_context_gain"] == 0.5
    assert Scores("run", 7, "validation", scores.rows).metrics["eval/in_context_gain"] == 0.5


def test_what_is_not_defined_is_a_dash_and_null_and_is_left_out_of_the_plot(scores, tmp_path):
    lines = scores.as_text().splitlines()
    assert lines[0] == "step 7, test: 3 pictures"
    [line] = [line for line in lines if line.startswith("generated")][:1]
    assert line.split() == ["generated", "0", *["-"] * 11]
    output_files.write(scores, tmp_path / "new")
    rows = json.loads((tmp_path / "new/table.json").read_text())["rows"]
    assert (rows[3]["ap50"], rows[3]["malformed"], rows[0]["malformed"]) == (None, 1.0, None)
    assert (tmp_path / "new/table.png").stat().st_size > 10_000


def test_a_table_without_any_object_is_written_too(tmp_path):
    empty = Scores("run", 7, "validation", (EvaluationRow("head", 0, 1, {"student_lm": 2.0, "seconds": 0.1}),))
    assert "Classes" not in empty.as_text()
    output_files.write(empty, tmp_path / "new")
    assert (tmp_path / "new/table.png").is_file()
