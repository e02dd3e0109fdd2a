from functools import cache

import pytest
from PIL import Image, ImageDraw

from bbu_train.data.cabinets.cabinet import draw
from bbu_train.data.cabinets.plan import Camera
from bbu_train.data.cabinets.words import MAKES, describe
from bbu_train.errors import InputError

SMALL = {"width": 224, "height": 168, "min_objects": 1, "max_objects": 6, "language": "english"}
FULL = {"width": 640, "height": 480, "min_objects": 1, "max_objects": 40, "language": "chinese"}
CLASSES = {
    "english": {"bbu", "screw", "wind baffle", "label", "slot"},
    "chinese": {"BBU设备", "螺丝", "挡风板", "标签", "机柜空间"},
}


def draw_many(scene, count):
    return [draw(("test", index), **scene) for index in range(count)]


@cache
def small():
    """Forty small pictures with their objects, in English."""
    return draw_many(SMALL, 40)


@cache
def full():
    """Pictures of up to forty objects each, in Chinese."""
    return draw_many(FULL, 16)


def test_the_same_key_gives_the_same_picture_and_objects():
    first, again = (draw((3, "train", 8), **SMALL) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1] == again[1]


def test_different_keys_give_different_pictures():
    assert len({picture.tobytes() for picture, _ in small()}) == 40


@pytest.mark.parametrize(("scene", "pictures"), [(SMALL, small), (FULL, full)])
def test_boxes_lie_inside_the_picture_and_are_some_pixels_wide(scene, pictures):
    for picture, objects in pictures():
        assert picture.size == (scene["width"], scene["height"])
        for item in objects:
            x1, y1, x2, y2 = item.box_xyxy
            assert 0 <= x1 <= x2 - 4
            assert 0 <= y1 <= y2 - 4
            assert x2 <= picture.width
            assert y2 <= picture.height


@pytest.mark.parametrize(("scene", "pictures"), [(SMALL, small), (FULL, full)])
def test_the_number_of_objects_is_in_range(scene, pictures):
    counts = {len(objects) for _, objects in pictures()}
    assert min(counts) >= scene["min_objects"]
    assert max(counts) <= scene["max_objects"]
    assert len(counts) > 3


def test_pictures_without_objects_come_only_when_allowed():
    tiny = {**SMALL, "width": 112, "height": 84, "max_objects": 3, "min_objects": 0}
    num_empty = sum(not objects for _, objects in draw_many(tiny, 60))
    assert 0 < num_empty < 12
    assert all(objects for _, objects in small())


@pytest.mark.parametrize(("language", "pictures"), [("english", small), ("chinese", full)])
def test_descriptions_have_two_or_three_levels_and_all_five_classes_appear(language, pictures):
    descriptions = [item.description for _, objects in pictures() for item in objects]
    assert {text.split("/")[0] for text in descriptions} == CLASSES[language]
    assert {len(text.split("/")) for text in descriptions} <= {2, 3}
    assert all(level.strip() for text in descriptions for level in text.split("/"))


def test_right_and_wrong_screws_present_and_missing_baffles_and_every_make_appear():
    descriptions = {item.description for _, objects in full() for item in objects}
    for levels in (
        *(("bbu", make, state) for make in MAKES for state in ("running", "alarm")),
        *(("screw", "correct"), ("screw", "correct", "seated")),
        *(("screw", "wrong", wrong) for wrong in ("no mark", "loose", "tilted")),
        *(("baffle", "installed"), ("baffle", "missing"), ("slot", "empty"), ("slot", "filled")),
        *(("label", "readable", ""), ("label", "unreadable")),
    ):
        beginning = describe("chinese", *levels)
        assert any(text.startswith(beginning) for text in descriptions), beginning


@pytest.mark.parametrize("angle", [-0.04, 0.0, 0.03])
def test_a_box_is_the_hull_of_what_the_rotated_picture_shows(angle):
    camera = Camera(width=200, height=150, scale=2, margin=6, angle=angle)
    corners = [(120, 90), (300, 90), (300, 200), (120, 200)]
    canvas = Image.new("L", camera.canvas_size)
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    picture = canvas.transform((200, 150), Image.Transform.AFFINE, camera.coefficients(), Image.Resampling.BILINEAR)
    assert picture.getbbox() == pytest.approx(camera.hull(corners), abs=1.5)


def test_more_objects_than_a_picture_can_hold_is_an_error_that_says_what_to_change():
    with pytest.raises(InputError, match="data.max_objects"):
        draw(("crowd",), **{**SMALL, "min_objects": 400, "max_objects": 400})
