import numpy as np
import pytest
from PIL import Image, ImageDraw
from scored import prediction

from bbu_train.images import fonts, marks
from bbu_train.images.colors import COLORS, DARK, UNKNOWN, WHITE, ClassColors
from bbu_train.images.marks import Mark, draw_marks
from bbu_train.images.overlay import CELL, full_size_sheet, prediction_panel, prediction_sheet
from bbu_train.images.sheet import (
    Entry,
    Panel,
    cell_size,
    class_entries,
    draw_panel,
    full_size,
    make_sheet,
    num_columns,
)
from bbu_train.types.samples import Object, Picture

BACKGROUND = (90, 90, 90)
CLASSES = [f"class{number}" for number in range(7)]


@pytest.fixture
def picture(tmp_path):
    return make(tmp_path / "grey.png", (200, 150), Object((20.0, 30.0, 120.0, 130.0), "螺丝/符合要求"))


def make(path, size, *objects):
    Image.new("RGB", size, BACKGROUND).save(path)
    return Picture(path, *size, objects)


def drawn(picture, boxes, threshold=0.5, classes=()):
    """A prediction drawn alone on its picture, 4 times as large as the picture, without caption and legend."""
    panel = prediction_panel(picture, boxes, threshold, ClassColors(classes), "a.jpg")
    return draw_panel(panel, full_size(panel.image), 1)


def colors_in(image, box=None):
    part = image.crop(box) if box else image
    return {color for _, color in part.getcolors(part.width * part.height)}


def test_a_small_picture_is_enlarged_by_a_whole_number(picture):
    image = drawn(picture, prediction())
    assert image.size == (800, 600)
    assert image.getpixel((300, 300)) == BACKGROUND


def test_true_boxes_are_white_dashes_where_the_object_is(picture):
    edge = drawn(picture, prediction()).crop((470, 130, 490, 500))  # the right side of the box, enlarged 4 times
    columns = [x for x in range(edge.width) if WHITE in colors_in(edge, (x, 0, x + 1, edge.height))]
    assert columns
    assert all(abs(470 + x - 480) <= 2 for x in columns)
    rows = [y for y in range(edge.height) if WHITE in colors_in(edge, (0, y, edge.width, y + 1))]
    assert 0.3 < len(rows) / edge.height < 0.7


def test_a_prediction_is_drawn_in_a_color_if_its_score_reaches_the_threshold(picture):
    below, reached = ((10, 10, 60, 60), 0.4, "bbu"), ((130, 20, 190, 140), 0.5, "label")
    image = drawn(picture, prediction(below, reached))
    assert image.getpixel((520, 300)) in COLORS
    assert image.getpixel((40, 140)) == BACKGROUND


def test_a_class_keeps_its_color_in_all_pictures_whatever_else_is_drawn_and_first(picture):
    colors, seen = ClassColors(CLASSES), {}
    for first in range(7):
        shown = (CLASSES[first:] + CLASSES[:first])[:3]
        boxes = [((10 + 50 * i, 10, 40 + 50 * i, 100), 0.9, name) for i, name in enumerate(shown)]
        image = drawn(picture, prediction(*boxes), classes=CLASSES)
        for i, name in enumerate(shown):
            assert seen.setdefault(name, pixel := image.getpixel((40 + 200 * i, 300))) == pixel == colors[name]
    assert len(set(seen.values())) == 7
    assert [ClassColors(CLASSES[::-1])[name] for name in CLASSES] == [seen[name] for name in CLASSES]


def test_a_class_that_the_data_lacks_has_a_color_and_a_legend_of_its_own():
    assert ClassColors(CLASSES)["s//"] == UNKNOWN
    assert ClassColors(())["s//"] in COLORS
    marks = [Mark((0, 0, 9, 9), name, name, COLORS[0], False) for name in ("class1", "s//", "?")]
    entries = class_entries([Panel(Image.new("RGB", (9, 9)), marks, "", None)], ClassColors(CLASSES))
    assert [entry.text for entry in entries] == ["class1", "no class of the data"]


def test_classes_that_share_a_color_are_named_in_one_entry_of_the_legend():
    names = [f"class{number:02}" for number in range(35)]
    colors = ClassColors(names)
    assert {colors[name] for name in names} == set(COLORS)
    marks = [Mark((0, 0, 9, 9), name, name, COLORS[0], False) for name in names]
    entries = class_entries([Panel(Image.new("RGB", (9, 9)), marks, "", None)], colors)
    shared = [(name, entry.color) for entry in entries[:-1] for name in entry.text.split(" or ")]
    assert sorted(shared) == [(name, colors[name]) for name in names[:30]]
    assert [entry.color for entry in entries[:-1]] == list(dict.fromkeys(entry.color for entry in entries[:-1]))
    assert entries[-1].text == "and 5 more"


def test_boxes_outside_or_inside_out_and_unannotated_pictures_are_drawn(picture):
    unannotated = Picture(picture.path, 200, 150, None)
    image = drawn(unannotated, prediction(((-50, -50, 900, 20), 0.9, "a"), ((90, 90, 50, 50), 0.9, "b")))
    assert len(colors_in(image) & set(COLORS)) == 2


def test_the_caption_counts_boxes_and_says_whether_the_picture_is_annotated(picture):
    found = prediction(((10, 10, 60, 60), 0.7, "bbu"))
    captions = [
        prediction_panel(Picture(picture.path, 200, 150, objects), found, threshold, ClassColors(()), "a.jpg").caption
        for objects, threshold in ((picture.objects, 0.5), ((), 0.0), (None, 0.9))
    ]
    assert captions == [
        "a.jpg: 1 true, 1 predicted with a score of 0.50 or more",
        "a.jpg: 0 true, 1 predicted",
        "a.jpg: not annotated, 0 predicted with a score of 0.90 or more",
    ]


@pytest.mark.parametrize("size", [(224, 168), (40, 40), (900, 30), (30, 900)], ids=str)
def test_no_label_covers_another_or_leaves_the_drawing(monkeypatch, size):
    random = np.random.default_rng(0)
    corners = np.sort(random.random((60, 2, 2)), axis=1) * size
    texts = [f"a long label {i}" * (i % 3 + 1) for i in range(60)]
    labels = [Mark(tuple(box.ravel()), text, "a", COLORS[0], False) for box, text in zip(corners, texts, strict=True)]
    image, places = Image.new("RGB", size), []
    place_of = marks._free_place
    monkeypatch.setattr(marks, "_free_place", lambda *arguments: places.append(place_of(*arguments)) or places[-1])
    cell = full_size(image)
    draw_panel(Panel(image, labels, "", None), cell, 1)
    kept = np.array([place for place in places if place])
    assert len(kept) > 4
    assert kept.min() >= 0
    assert (kept[:, 2:] <= cell).all()
    assert not any(marks._overlap(a, b) for i, a in enumerate(kept) for b in kept[:i])
    drawn = kept[:-1]  # the last one is too many
    assert np.prod(drawn[:, 2:] - drawn[:, :2], axis=1).sum() <= marks.MAX_COVERED * np.prod(cell)


@pytest.mark.parametrize("size", [(900, 30), (30, 900)], ids=str)
def test_the_label_of_a_narrow_picture_stands_beside_it(size):
    image = Image.new("RGB", size, BACKGROUND)
    mark = Mark((10, 10, 20, 20), "bbu", "bbu", COLORS[0], True)
    bare, labelled = (
        np.asarray(draw_panel(Panel(image, [mark._replace(text=text)], "", None), full_size(image), 1))
        for text in ("bbu", "bbu 2")
    )
    rows, columns = np.nonzero((bare != labelled).any(axis=-1))
    picture = (bare == BACKGROUND).all(axis=-1)
    assert not picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].any()


def test_whatever_an_untrained_model_writes_can_be_drawn_and_is_no_reason_to_install_a_font(
    picture, caplog, monkeypatch
):
    monkeypatch.setattr(fonts, "_installed_cjk_font", lambda: None)
    fonts._warn_once.cache_clear()
    english = Picture(picture.path, 200, 150, (Object((1.0, 1.0, 9.0, 9.0), "bbu"),))
    texts = ["", "\n", "two\nlines\t\x00", "long" * 500, "\ufffd\u0e01\U0001f600机柜", *map(str, range(40))]
    found = prediction(*(((5, 5, 90, 90), 0.9, text) for text in texts))
    panels = [prediction_panel(english, found, 0.5, ClassColors(["bbu"]), "a.jpg")]
    assert full_size_sheet(panels, ClassColors(["bbu"])).height < 900
    assert not caplog.records
    prediction_panel(picture, found, 0.5, ClassColors(()), "a.jpg")
    assert [record.message for record in caplog.records] == [fonts.WARNING]


@pytest.mark.parametrize(
    ("number", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (7, 4), (8, 4), (9, 3), (12, 4), (16, 4)]
)
def test_a_grid_has_as_few_empty_cells_as_can_be(number, columns):
    assert num_columns(number) == columns


def test_all_cells_of_a_sheet_are_equal_whatever_the_shapes_of_the_pictures(tmp_path):
    sizes = (200, 150), (40, 40), (2000, 40), (40, 2000), (210, 150), (220, 170)
    pictures = [make(tmp_path / f"{size}.png", size) for size in sizes]
    panels = [prediction_panel(each, prediction(), 0.5, ClassColors(()), each.path.name) for each in pictures]
    width, height = cell_size(panels, CELL)
    assert (width, round(width / height, 1)) == (CELL, 1.3)
    sheet = prediction_sheet(panels, ClassColors(()), "")
    assert abs(sheet.width - 3 * CELL) < 80
    assert abs(sheet.height - 2 * height) < 150
    middles = [(sheet.width * (2 * column + 1) // 6, 41 + height // 2) for column in range(3)]
    assert [sheet.getpixel(middle) for middle in middles] == [BACKGROUND] * 3


def test_the_border_of_a_panel_is_where_the_sheet_shows_it_and_a_long_legend_takes_more_lines():
    panel = Panel(Image.new("RGB", (80, 60), BACKGROUND), [], "caption " * 90, COLORS[0])
    short = make_sheet([panel], (400, 300), "a title " * 90, [Entry("short", WHITE, True)], 1)
    names = [f"a class with a long name, number {number}" for number in range(8)]
    long = make_sheet([panel], (400, 300), "a title " * 90, [Entry(name, COLORS[0], None) for name in names], 1)
    assert long.width == short.width < 440
    assert long.height > short.height + 100
    assert COLORS[0] in colors_in(short)
    assert DARK in colors_in(short)


def test_where_there_are_many_marks_lines_are_thinner():
    def painted(count):
        image = Image.new("RGB", (300, 300))
        draw_marks(
            ImageDraw.Draw(image), [Mark((50, 50, 250, 250), "", "", COLORS[0], False)] * count, (0, 0, 300, 300), 1
        )
        return np.sum(np.any(np.asarray(image)[100:200, 60:240] != 0, axis=-1)), np.sum(np.asarray(image)[150] != 0)

    assert painted(60)[1] < painted(1)[1]
