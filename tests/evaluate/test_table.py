import json

import pytest

from bbu_train.evaluate import output_files
from bbu_train.evaluate.measure import EvaluationRow
from bbu_train.evaluate.table import EvaluationTable


@pytest.fixture
def table():
    """A head that improves with teachers, and a generated route that finds nothing; one class has a Chinese name."""
    none = {"ap": 0.2, "ap50": 0.4, "f1": 0.5, "ap50/螺丝": 0.4, "student_lm": 2.0, "seconds": 0.1}
    one = none | {"ap50": 0.5, "f1": 0.7, "student_lm": 1.5}
    two = none | {"ap50": 0.6, "student_lm": 1.25}
    generated = {"student_lm": 2.0, "malformed": 1.0, "seconds": 2.0}
    rows = [EvaluationRow("head", num_teachers, 3, metrics) for num_teachers, metrics in enumerate((none, one, two))]
    return EvaluationTable("outputs/a/b", 7, "test", (*rows, EvaluationRow("generated", 0, 3, generated)))


def test_the_gain_is_the_decrease_of_the_loss_and_the_increase_of_each_routes_metrics(table):
    assert table.gains == pytest.approx(
        {
            "in_context_gain": 0.5,
            "in_context_gain/teachers_2": 0.75,
            "in_context_gain/head_ap50": 0.1,
            "in_context_gain/head_ap50/teachers_2": 0.2,
            "in_context_gain/head_f1": 0.2,
            "in_context_gain/head_f1/teachers_2": 0.0,
        }
    )


def test_without_a_row_without_teachers_there_is_no_gain(table):
    assert EvaluationTable("run", 7, "test", table.rows[1:3]).gains == {}


def test_metric_names_begin_with_eval_for_validation_and_with_the_split_otherwise(table):
    assert table.metrics["test/head/teachers_1/ap50"] == 0.5
    assert table.metrics["test/in_context_gain"] == 0.5
    assert EvaluationTable("run", 7, "validation", table.rows).metrics["eval/in_context_gain"] == 0.5


def test_an_undefined_metric_is_a_dash_in_the_text_and_null_in_json_and_missing_from_the_plot(table, tmp_path):
    lines = table.as_text().splitlines()
    assert lines[0] == "step 7, test: 3 pictures"
    [line] = [line for line in lines if line.startswith("generated")][:1]
    assert line.split() == ["generated", "0", *["-"] * 12]
    output_files.write(table, tmp_path / "new")
    rows = json.loads((tmp_path / "new/table.json").read_text())["rows"]
    assert (rows[3]["ap50"], rows[3]["malformed"], rows[0]["malformed"]) == (None, 1.0, None)
    assert (tmp_path / "new/table.png").stat().st_size > 10_000


def test_a_table_without_objects_is_written(tmp_path):
    row = EvaluationRow("head", 0, 1, {"student_lm": 2.0, "seconds": 0.1})
    table = EvaluationTable("run", 7, "validation", (row,))
    assert "Classes" not in table.as_text()
    output_files.write(table, tmp_path / "new")
    assert (tmp_path / "new/table.png").is_file()
