"""Random views of pictures: what is drawn, and that boxes, pixels and lengths follow the same transform."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from bbu_train.augmentation.none import NoAugmentation
from bbu_train.augmentation.views import RandomViews
from bbu_train.conversation.patches import resized_size
from bbu_train.conversation.pixels import read_pixels
from bbu_train.errors import InputError
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object, Picture, Sample

UNCHANGED = {
    **{"left_right": 0, "top_bottom": 0, "crop": 0, "min_side": 0.3, "min_visible": 0.5, "scale": [1, 1]},
    **{"brightness": 0, "contrast": 0, "saturation": 0, "seed": 17},
}
CHANGED = {"left_right": 0.5, "top_bottom": 0.5, "crop": 0.8, "scale": [0.5, 2]}
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def make_views(**changes):
    return RandomViews(**UNCHANGED | changes)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A black picture of 180 x 140 pixels whose four objects are filled with a colour item, on whole pixels."""
    boxes = [(10, 20, 60, 50), (100, 5, 170, 60), (0, 70, 40, 140), (90, 80, 150, 120)]
    image = Image.new("RGB", (180, 140))
    for (x1, y1, x2, y2), colour in zip(boxes, COLOURS, strict=True):
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    path = tmp_path_factory.mktemp("painted") / "a.png"
    image.save(path)
    objects = tuple(Object(tuple(map(float, box)), str(i)) for i, box in enumerate(boxes))
    return Sample("painted", Picture(path, 180, 140, objects), ())


def box_of_colour(image, colour):
    """Return the box of the pixels that have more than half of a colour."""
    distance = np.abs(np.asarray(image, dtype=float) - colour).sum(axis=2)
    rows, columns = np.nonzero(distance < 127)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("epoch", range(40))
def test_the_box_of_an_object_is_where_its_pixels_are(painted, builder, epoch):
    student = make_views(**CHANGED)(painted, epoch).student
    width, height = resized_size(student, builder.picture_format)
    image = read_pixels(student, width, height)
    for item in student.objects:
        scales = (width / student.width, height / student.height) * 2
        expected = [x * scale for x, scale in zip(item.box_xyxy, scales, strict=True)]
        assert box_of_colour(image, COLOURS[int(item.description)]) == pytest.approx(expected, abs=1.6)


@pytest.mark.parametrize("epoch", range(40))
def test_objects_stay_if_enough_of_their_pixels_is_in_the_crop(painted, epoch):
    student = make_views(crop=1)(painted, epoch).student
    left, top, right, bottom = student.view.part_xyxy
    expected = set()
    for item in painted.student.objects:
        x1, y1, x2, y2 = map(int, item.box_xyxy)
        mask = np.zeros((140, 180), dtype=bool)
        mask[y1:y2, x1:x2] = True
        if mask[top:bottom, left:right].sum() >= 0.5 * mask.sum():
            expected.add(item.description)
    assert {item.description for item in student.objects} == expected
    for item in student.objects:
        x1, y1, x2, y2 = item.box_xyxy
        assert 0 <= x1 < x2 <= student.width and 0 <= y1 < y2 <= student.height


def test_a_crop_has_whole_pixels_and_sides_from_min_side_to_1(painted):
    parts = [make_views(crop=1, min_side=0.4)(painted, epoch).student.view.part_xyxy for epoch in range(200)]
    assert all(type(x) is int for part in parts for x in part)
    sides = [((right - left) / 180, (bottom - top) / 140) for left, top, right, bottom in parts]
    assert 0.39 < min(min(pair) for pair in sides) < 0.45 and 0.95 < max(max(pair) for pair in sides) <= 1
    assert min(part[0] for part in parts) == min(part[1] for part in parts) == 0
    assert (max(part[2] for part in parts), max(part[3] for part in parts)) == (180, 140)


def test_a_crop_never_loses_every_object_and_an_empty_picture_stays_empty(painted):
    speck = replace(painted, student=replace(painted.student, objects=(Object((170, 130, 172, 132), "speck"),)))
    empty = replace(painted, student=replace(painted.student, objects=()))
    unknown = replace(painted, student=replace(painted.student, objects=None))
    views = make_views(crop=1, min_side=0.05, min_visible=1)
    for epoch in range(100):
        assert len(views(speck, epoch).student.objects) == 1
        assert views(empty, epoch).student.objects == ()
        assert views(unknown, epoch).student.objects is None
    assert any(views(empty, epoch).student.width < 20 for epoch in range(100))


def test_a_view_depends_only_on_seed_epoch_and_sample(painted):
    other = replace(painted, id="other")
    views, same_views, other_views = make_views(**CHANGED), make_views(**CHANGED), make_views(**CHANGED, seed=18)
    expected = [views(painted, epoch) for epoch in range(10)]
    assert [same_views(painted, epoch) for epoch in reversed(range(10))] == expected[::-1]
    assert len({sample.student.view for sample in expected}) > 5
    assert [views(other, epoch).student.view for epoch in range(10)] != [sample.student.view for sample in expected]
    assert [other_views(painted, epoch) for epoch in range(10)] != expected


def test_a_picture_is_flipped_with_the_given_probabilities(painted):
    augmentation = make_views(left_right=0.25, top_bottom=0.75)
    views = [augmentation(painted, epoch).student.view for epoch in range(400)]
    assert sum(view.left_right for view in views) / 400 == pytest.approx(0.25, abs=0.07)
    assert sum(view.top_bottom for view in views) / 400 == pytest.approx(0.75, abs=0.07)
    assert all(view.part_xyxy == (0, 0, 180, 140) for view in views)


def test_the_size_of_a_view_is_drawn_from_the_scales(painted):
    views = make_views(scale=[0.5, 2])
    widths = [views(painted, epoch).student.width for epoch in range(400)]
    assert 90 <= min(widths) < 95 and 345 < max(widths) <= 360
    assert np.median(widths) == pytest.approx(180, abs=25)  # larger as often as smaller


def test_pixels_are_changed_as_pil_changes_them(make_picture):
    sample = Sample("noise", make_picture("noise 60 40", 60, 40), ())
    original = Image.open(sample.student.path).copy()
    unchanged = make_views()(sample, 0).student
    assert unchanged.view is not None and read_pixels(unchanged, 60, 40) == original
    flipped = make_views(left_right=1, top_bottom=1)(sample, 0).student
    assert read_pixels(flipped, 60, 40) == ImageOps.flip(ImageOps.mirror(original))
    coloured = make_views(brightness=0.5, contrast=0.5, saturation=0.5)(sample, 0).student
    expected = ImageEnhance.Brightness(original).enhance(coloured.view.brightness)
    expected = ImageEnhance.Contrast(expected).enhance(coloured.view.contrast)
    expected = ImageEnhance.Color(expected).enhance(coloured.view.saturation)
    assert read_pixels(coloured, 60, 40) == expected
    assert {coloured.view.brightness, coloured.view.contrast, coloured.view.saturation}.isdisjoint({1.0})


def test_a_picture_that_changed_since_it_was_checked_is_reported_with_both_sizes(make_picture):
    picture = make_picture("noise 60 40", 60, 40)
    student = make_views(scale=[2, 2])(Sample("a", replace(picture, height=41), ()), 0).student
    with pytest.raises(InputError, match=r"is 60 x 40 pixels but was 60 x 41"):
        read_pixels(student, 56, 56)


@pytest.mark.parametrize("choice", ["none", "flips", "crops"])
def test_the_length_of_a_view_is_known_before_its_pixels(config, builder, samples, choice):
    augmentation = instantiate(config(f"augmentation={choice}", "seed=3").augmentation, _convert_="all")
    descriptions = ('标签/可读 "a\\b"\n', "slot 12/3 ", "  9", "", "]}, 7 {[", "é/<|im_end|>", "1")
    random = generator("odd")
    for sample in samples:
        objects = tuple(
            replace(item, description=descriptions[random.integers(len(descriptions))])
            for item in sample.student.objects
        )
        described = replace(sample, student=replace(sample.student, objects=objects))
        for epoch in range(12):
            view = augmentation(described, epoch)
            encoded = builder.encode(builder.converse(view, (), with_answer=True))
            assert builder.num_tokens(view, ()) == len(encoded.input_ids)
            assert builder.num_patches(view, ()) == [len(encoded.patches)]
            assert len(encoded.boxes_cxcywh) == len(view.student.objects)


def test_without_augmentation_a_sample_is_unchanged(painted):
    assert NoAugmentation()(painted, 3) is painted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("left_right", 1.5), ("top_bottom", -0.1), ("crop", True), ("min_side", 0), ("min_visible", -1)),
        *(("scale", [2, 1]), ("scale", [1]), ("scale", [0, 1]), ("contrast", 2), ("saturation", math.nan)),
    ],
)
def test_an_invalid_value_is_refused_by_its_key(key, value):
    with pytest.raises(InputError, match=rf"augmentation\.{key}="):
        make_views(**{key: value})
