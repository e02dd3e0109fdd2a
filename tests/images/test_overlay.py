import json

import numpy as np
import pytest
from PIL import Image

from bbu_train.images.overlay import COLORS, ClassColors, overlay
from bbu_train.images.sheet import add_title, make_sheet
from bbu_train.reporting.loss_plot import plot_losses
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Object, Picture

GREY = (90, 90, 90)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (200, 150), GREY).save(path)
    return Picture(path, 200, 150, (Object((20.0, 30.0, 120.0, 130.0), "螺丝/符合要求"),))


def predict(*objects):
    """Return the prediction of some (box, score, description)."""
    boxes, scores, descriptions = zip(*objects, strict=True) if objects else ((), (), ())
    return Prediction(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores, dtype=float), descriptions)


def colors_in(image, box=None):
    part = image.crop(box) if box else image
    return {color for _, color in part.getcolors(part.width * part.height)}


def test_a_small_picture_is_enlarged_by_a_whole_number_and_gets_a_legend(picture):
    image = overlay(picture, predict(), 0.5, ClassColors(()))
    assert image.width == 800
    assert 600 < image.height < 700
    assert image.getpixel((300, 300)) == GREY


def test_true_boxes_are_white_dashes_where_the_object_is(picture):
    edge = overlay(picture, predict(), 0.5, ClassColors(())).crop(
        (470, 130, 490, 500)
    )  # the right side of the box, enlarged 4 times
    columns = [x for x in range(edge.width) if (255, 255, 255) in colors_in(edge, (x, 0, x + 1, edge.height))]
    assert columns
    assert all(abs(470 + x - 480) <= 2 for x in columns)


def test_a_prediction_is_drawn_in_a_color_if_its_score_reaches_the_threshold(picture):
    below, reached = ((10, 10, 60, 60), 0.4, "bbu"), ((130, 20, 190, 140), 0.5, "label")
    image = overlay(picture, predict(below, reached), 0.5, ClassColors(()))
    assert image.getpixel((520, 300)) in COLORS
    assert image.getpixel((40, 140)) == GREY


def test_classes_of_one_picture_have_different_colors(picture):
    names = [f"class{number}" for number in range(7)]
    objects = [((10 + 25 * i, 10, 20 + 25 * i, 100), 0.9, name) for i, name in enumerate(names)]
    image = overlay(picture, predict(*objects), 0.5, ClassColors(names))
    assert len({image.getpixel((40 + 100 * i, 300)) for i in range(7)}) == 7


def test_a_class_keeps_its_color_in_all_pictures_whatever_else_is_drawn_and_first(picture):
    names = [f"class{number}" for number in range(7)]
    colors, drawn = ClassColors(names[:4]), {}
    for first in range(7):  # each picture has other classes, in another order, the last three unknown before
        shown = (names[first:] + names[:first])[:3]
        objects = [((10 + 50 * i, 10, 40 + 50 * i, 100), 0.9, name) for i, name in enumerate(shown)]
        image = overlay(picture, predict(*objects), 0.5, colors)
        for i, name in enumerate(shown):
            assert drawn.setdefault(name, pixel := image.getpixel((40 + 200 * i, 300))) == pixel
    assert len({drawn[name] for name in names[:4]}) == 4
    assert [ClassColors(names[3::-1])[name] for name in names[:4]] == [drawn[name] for name in names[:4]]


def test_more_classes_than_colors_share_them():
    colors = ClassColors(f"class{number}" for number in range(30))
    first = [colors[f"class{number}"] for number in range(30)]
    assert set(first) == set(COLORS)
    assert [colors[f"class{number}"] for number in range(30)] == first


def test_boxes_outside_or_inside_out_and_unannotated_pictures_are_drawn(picture):
    unannotated = Picture(picture.path, 200, 150, None)
    image = overlay(
        unannotated, predict(((-50, -50, 900, 20), 0.9, "a"), ((90, 90, 50, 50), 0.9, "b")), 0.5, ClassColors(())
    )
    assert len(colors_in(image) & set(COLORS)) == 2


def test_a_title_stands_above_the_picture(picture):
    image = overlay(picture, predict(), 0.5, ClassColors(()))
    sheet = add_title(image, "generated: 螺丝")
    assert sheet.width == image.width
    strip = sheet.height - image.height
    assert len(colors_in(sheet, (0, 0, sheet.width, strip))) > 2
    assert sheet.crop((0, strip, *sheet.size)).tobytes() == image.tobytes()


def test_the_legend_counts_true_boxes_only_of_annotated_pictures(picture):
    unannotated = Picture(picture.path, 200, 150, None)
    empty = Picture(picture.path, 200, 150, ())
    assert (
        overlay(unannotated, predict(), 0.5, ClassColors(())).tobytes()
        != overlay(empty, predict(), 0.5, ClassColors(())).tobytes()
    )


def test_a_long_legend_takes_more_lines(picture):
    names = [f"a class with a long name, number {number}" for number in range(8)]
    many = overlay(picture, predict(*(((1, 1, 9, 9), 0.9, name) for name in names)), 0.5, ClassColors(()))
    assert many.height > overlay(picture, predict(), 0.5, ClassColors(())).height + 20


def test_whatever_an_untrained_model_writes_can_be_drawn(picture):
    texts = ["", "\n", "two\nlines\t\x00", "long" * 500, "\ufffd\u0e01\U0001f600", *map(str, range(40))]
    image = overlay(picture, predict(*(((5, 5, 90, 90), 0.9, text) for text in texts)), 0.5, ClassColors(()))
    assert image.height < 900


def test_a_sheet_has_a_cell_for_each_picture():
    images = [Image.new("RGB", (100, 50), color) for color in ("red", "lime", "blue")]
    sheet = make_sheet(images, columns=2)
    assert sheet.size == (2 * 112 + 12, 2 * 62 + 12)
    assert [sheet.getpixel(at) for at in ((60, 37), (172, 37), (60, 99))] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert sheet.getpixel((172, 99)) == (255, 255, 255)


def plot(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_losses(folder / "metrics.jsonl", folder / "losses.png")
    with Image.open(folder / "losses.png") as image:
        return image.convert("RGB")


def test_losses_are_drawn_as_lines_and_evaluations_as_dots(tmp_path):
    rows = [{"step": step, "loss/total": 5.0 / step, "lr/llm": 1e-5} for step in range(1, 200)]
    training = plot(tmp_path, rows)
    assert training.width == 1200
    both = plot(tmp_path, [*rows, {"step": 100, "eval/loss/total": 3.0, "eval/ap": 0.1}])
    line, dot = (37, 99, 235), (234, 88, 12)
    assert line in colors_in(training)
    assert np.sum(np.all(np.asarray(both) == dot, axis=-1)) > np.sum(np.all(np.asarray(training) == dot, axis=-1))


def test_each_loss_has_a_panel_and_values_that_are_not_finite_are_gaps(tmp_path):
    one = plot(tmp_path, [{"step": 1, "loss/total": 1.0}, {"step": 2, "loss/total": "NaN"}])
    rows = [{"step": 1} | {f"loss/{name}": "Infinity" for name in "abcdefg"}]
    assert plot(tmp_path, rows).height > 2 * one.height
