import json
import os

import numpy as np
import pytest
from PIL import Image
from scored import prediction

from bbu_train.images.colors import COLORS
from bbu_train.reporting import final_report
from bbu_train.types.samples import Object, Picture

BOX = (20.0, 30.0, 120.0, 130.0)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / os.fsdecode(b"gr\xe9y.png")  # no UTF-8
    Image.new("RGB", (1000, 750), (90, 90, 90)).save(path)
    return Picture(path, 1000, 750, (Object(BOX, "螺丝/符合要求"),))


def overlay_colors(path):
    """The colours of the palette that the picture contains, within JPEG's error."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    return [color for color in COLORS if (np.abs(pixels - color).sum(axis=1) < 12).sum() > 50]


def test_a_gallery_is_one_small_file_per_step_that_a_repeated_evaluation_overwrites(picture, tmp_path):
    boxes = prediction((BOX, 0.9, "螺丝"), ((500, 300, 900, 700), 0.8, "label"))
    metrics = {"eval/f1_threshold": 0.5, "eval/f1": 0.7, "eval/ap50": 0.6}
    [path] = final_report.write_gallery(tmp_path, 30, [(picture, boxes)] * 2, 2, metrics)
    first = path.read_bytes()
    assert path == tmp_path / "gallery/step-00000030.jpg"
    assert len(overlay_colors(path)) == 2
    with Image.open(path) as sheet:
        assert max(sheet.size) < 1500
    assert final_report.write_gallery(tmp_path, 30, [(picture, boxes)] * 2, 2, metrics) == [path]
    assert path.read_bytes() == first


def test_while_f1_is_zero_as_many_of_the_best_boxes_are_drawn_as_there_are_objects(picture, tmp_path):
    boxes = prediction(((500, 300, 900, 700), 0.2, "label"), ((200, 100, 400, 600), 0.1, "bbu"))
    [path] = final_report.write_gallery(tmp_path, 0, [(picture, boxes)], 1, {"eval/f1_threshold": 1.0, "eval/f1": 0.0})
    assert len(overlay_colors(path)) == 1


def test_without_predictions_there_is_no_gallery(tmp_path):
    assert final_report.write_gallery(tmp_path, 0, [], 4, {}) == []
    assert not (tmp_path / "gallery").exists()


def test_a_loss_that_some_steps_lack_begins_where_it_is_first_defined(tmp_path):
    rows = [
        {"step": 1, "loss/student_lm": 3.0, "loss/total": 3.0, "lr/llm": 0.1},
        {"step": 2, "loss/student_lm": 2.0, "loss/teacher_lm": 5.0, "loss/total": 7.0},
        {"step": 3, "loss/student_lm": 1.0, "loss/total": "NaN"},
        {"step": 3, "eval/loss/student_lm": 1.5, "eval/loss/total": 1.5, "eval/ap": 0.5},  # by an earlier process
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = final_report.summarize(tmp_path, [], [], 1, {"memory": None, "time": "start 1 s"}, None).splitlines()
    assert lines[-2:] == ["time    start 1 s", f"run     {tmp_path}"]
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("loss/")}
    assert table == {
        "loss/student_lm": ["3.0000", "1.0000"],
        "loss/teacher_lm": ["5.0000", "5.0000"],
        "loss/total": ["3.0000", "nan"],
    }
    assert "validation" not in "".join(lines)


def test_the_plots_at_the_end_are_losses_rates_and_as_many_boxes_as_the_gallery_has(picture, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/total": 3.0, "lr/llm": 0.1}\n')
    boxes = prediction(((500, 300, 900, 700), 0.2, "label"), ((200, 100, 400, 600), 0.1, "bbu"))
    metrics = {"eval/f1_threshold": 1.0, "eval/f1": 0.0}
    paths = final_report.write_plots(tmp_path, [(picture, boxes)], metrics, {"student_lm": 1.0})
    assert [path.name for path in paths] == ["losses.png", "rates.png", "overlay.png"]
    assert len(overlay_colors(paths[-1])) == 1
    assert final_report.write_plots(tmp_path, [], {}, {}) == paths[:2]
