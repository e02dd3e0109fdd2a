"""Views of pictures: what is drawn, and that boxes, pixels and lengths follow one transform."""

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

STILL = {
    **{"left_right": 0, "top_bottom": 0, "crop": 0, "min_side": 0.3, "min_visible": 0.5, "scale": [1, 1]},
    **{"brightness": 0, "contrast": 0, "saturation": 0, "seed": 17},
}
MOVING = {"left_right": 0.5, "top_bottom": 0.5, "crop": 0.8, "scale": [0.5, 2]}
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def views(**changes):
    return RandomViews(**STILL | changes)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A black picture of 180 x 140 whose objects are filled with a colour each, on whole pixels."""
    boxes = [(10, 20, 60, 50), (100, 5, 170, 60), (0, 70, 40, 140), (90, 80, 150, 120)]
    image = Image.new("RGB", (180, 140))
    for (x1, y1, x2, y2), colour in zip(boxes, COLOURS, strict=True):
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    path = tmp_path_factory.mktemp("painted") / "a.png"
    image.save(path)
    objects = tuple(Object(tuple(map(float, box)), str(i)) for i, box in enumerate(boxes))
    return Sample("painted", Picture(path, 180, 140, objects), ())


def found(image, colour):
    """The box of a colour in an image: the pixels of which it has more than half."""
    distance = np.abs(np.asarray(image, dtype=float) - colour).sum(axis=2)
    rows, columns = np.nonzero(distance < 127)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("epoch", range(40))
def test_the_box_of_an_object_is_where_its_pixels_are(painted, builder, epoch):
    student = views(**MOVING)(painted, epoch).student
    width, height = resized_size(student, builder.picture_format)
    image = read_pixels(student, width, height)
    for each in student.objects:
        scales = (width / student.width, height / student.height) * 2
        expected = [x * scale for x, scale in zip(each.box_xyxy, scales, strict=True)]
        assert found(image, COLOURS[int(each.description)]) == pytest.approx(expected, abs=1.6)


@pytest.mark.parametrize("epoch", range(40))
def test_the_objects_that_stay_are_those_of_which_enough_is_seen(painted, epoch):
    """Counted in pixels: all corners are whole."""
    student = views(crop=1)(painted, epoch).student
    left, top, right, bottom = student.view.part_xyxy
    expected = set()
    for each in painted.student.objects:
        x1, y1, x2, y2 = map(int, each.box_xyxy)
        mask = np.zeros((140, 180), dtype=bool)
        mask[y1:y2, x1:x2] = True
        if mask[top:bottom, left:right].sum() >= 0.5 * mask.sum():
            expected.add(each.description)
    assert {each.description for each in student.objects} == expected
    for each in student.objects:
        x1, y1, x2, y2 = each.box_xyxy
        assert 0 <= x1 < x2 <= student.width and 0 <= y1 < y2 <= student.height


def test_a_part_is_whole_pixels_of_the_picture_with_sides_as_short_as_allowed(painted):
    parts = [views(crop=1, min_side=0.4)(painted, epoch).student.view.part_xyxy for epoch in range(200)]
    assert all(type(x) is int for part in parts for x in part)
    sides = [((right - left) / 180, (bottom - top) / 140) for left, top, right, bottom in parts]
    assert 0.39 < min(min(pair) for pair in sides) < 0.45 and 0.95 < max(max(pair) for pair in sides) <= 1
    assert min(part[0] for part in parts) == min(part[1] for part in parts) == 0
    assert (max(part[2] for part in parts), max(part[3] for part in parts)) == (180, 140)


def test_a_part_never_loses_every_object_and_an_empty_picture_stays_empty(painted):
    speck = replace(painted, student=replace(painted.student, objects=(Object((170, 130, 172, 132), "speck"),)))
    empty = replace(painted, student=replace(painted.student, objects=()))
    unknown = replace(painted, student=replace(painted.student, objects=None))
    tight = views(crop=1, min_side=0.05, min_visible=1)
    for epoch in range(100):
        assert len(tight(speck, epoch).student.objects) == 1
        assert tight(empty, epoch).student.objects == ()
        assert tight(unknown, epoch).student.objects is None
    assert any(tight(empty, epoch).student.width < 20 for epoch in range(100))


def test_a_view_is_a_function_of_seed_epoch_and_sample_alone(painted):
    other = replace(painted, id="other")
    one, again = views(**MOVING), views(**MOVING)
    expected = [one(painted, epoch) for epoch in range(10)]
    assert [again(painted, epoch) for epoch in reversed(range(10))] == expected[::-1]
    assert len({each.student.view for each in expected}) > 5
    assert [one(other, epoch).student.view for epoch in range(10)] != [each.student.view for each in expected]
    assert [views(**MOVING, seed=18)(painted, epoch) for epoch in range(10)] != expected


def test_a_picture_is_mirrored_as_often_as_asked(painted):
    seen = [views(left_right=0.25, top_bottom=0.75)(painted, epoch).student.view for epoch in range(400)]
    assert sum(view.left_right for view in seen) / 400 == pytest.approx(0.25, abs=0.07)
    assert sum(view.top_bottom for view in seen) / 400 == pytest.approx(0.75, abs=0.07)
    assert all(view.part_xyxy == (0, 0, 180, 140) for view in seen)


def test_the_size_of_what_is_seen_is_drawn_from_the_scales(painted):
    widths = [views(scale=[0.5, 2])(painted, epoch).student.width for epoch in range(400)]
    assert 90 <= min(widths) < 95 and 345 < max(widths) <= 360
    assert np.median(widths) == pytest.approx(180, abs=25)  # as often larger as smaller


def test_pixels_are_changed_as_pil_does_it(make_picture):
    sample = Sample("noise", make_picture("noise 60 40", 60, 40), ())
    original = Image.open(sample.student.path).copy()
    still = views()(sample, 0).student
    assert still.view is not None and read_pixels(still, 60, 40) == original
    both = views(left_right=1, top_bottom=1)(sample, 0).student
    assert read_pixels(both, 60, 40) == ImageOps.flip(ImageOps.mirror(original))
    coloured = views(brightness=0.5, contrast=0.5, saturation=0.5)(sample, 0).student
    expected = ImageEnhance.Brightness(original).enhance(coloured.view.brightness)
    expected = ImageEnhance.Contrast(expected).enhance(coloured.view.contrast)
    expected = ImageEnhance.Color(expected).enhance(coloured.view.saturation)
    assert read_pixels(coloured, 60, 40) == expected
    assert {coloured.view.brightness, coloured.view.contrast, coloured.view.saturation}.isdisjoint({1.0})


def test_a_picture_that_changed_since_it_was_checked_is_named_as_it_was(make_picture):
    picture = make_picture("noise 60 40", 60, 40)
    seen = views(scale=[2, 2])(Sample("a", replace(picture, height=41), ()), 0).student
    with pytest.raises(InputError, match=r"is 60 x 40 pixels but was 60 x 41"):
        read_pixels(seen, 56, 56)


@pytest.mark.parametrize("choice", ["none", "flips", "crops"])
def test_the_length_of_a_view_is_known_before_its_pixels(config, builder, samples, choice):
    augmentation = instantiate(config(f"augmentation={choice}", "seed=3").augmentation, _convert_="all")
    odd = ('标签/可读 "a\\b"\n', "slot 12/3 ", "  9", "", "]}, 7 {[", "é/<|im_end|>", "1")
    random = generator("odd")
    for sample in samples:
        objects = tuple(replace(each, description=odd[random.integers(len(odd))]) for each in sample.student.objects)
        described = replace(sample, student=replace(sample.student, objects=objects))
        for epoch in range(12):
            seen = augmentation(described, epoch)
            encoded = builder.encode(builder.converse(seen, (), with_answer=True))
            assert builder.num_tokens(seen, ()) == len(encoded.input_ids)
            assert builder.num_patches(seen, ()) == [len(encoded.patches)]
            assert len(encoded.boxes_cxcywh) == len(seen.student.objects)


def test_without_augmentation_a_sample_stays_itself(painted):
    assert NoAugmentation()(painted, 3) is painted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("left_right", 1.5), ("top_bottom", -0.1), ("crop", True), ("min_side", 0), ("min_visible", -1)),
        *(("scale", [2, 1]), ("scale", [1]), ("scale", [0, 1]), ("contrast", 2), ("saturation", math.nan)),
    ],
)
def test_a_value_that_makes_no_sense_names_its_key(key, value):
    with pytest.raises(InputError, match=rf"augmentation\.{key}="):
        views(**{key: value})
