from collections import Counter

import pytest
from PIL import Image, ImageDraw

from bbu_train.data.cabinets.cabinet import draw
from bbu_train.data.cabinets.plan import Camera
from bbu_train.errors import InputError

SMALL = {"width": 224, "height": 168, "min_objects": 1, "max_objects": 6, "language": "english"}
FULL = {"width": 640, "height": 480, "min_objects": 1, "max_objects": 40, "language": "chinese"}
CLASSES = {
    "english": {"bbu", "screw", "wind baffle", "label", "slot"},
    "chinese": {"BBU设备", "螺丝", "挡风板", "标签", "机柜空间"},
}


def many(scene, count=40):
    return [draw(("test", index), **scene) for index in range(count)]


def test_the_same_key_gives_the_same_picture_and_objects():
    first, again = (draw((3, "train", 8), **SMALL) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1] == again[1]


def test_different_keys_give_different_pictures():
    assert len({picture.tobytes() for picture, _ in many(SMALL, 10)}) == 10


@pytest.mark.parametrize("scene", [SMALL, FULL])
def test_boxes_lie_inside_the_picture_and_are_some_pixels_wide(scene):
    for picture, objects in many(scene):
        assert picture.size == (scene["width"], scene["height"])
        for thing in objects:
            x1, y1, x2, y2 = thing.box_xyxy
            assert 0 <= x1 <= x2 - 4
            assert 0 <= y1 <= y2 - 4
            assert x2 <= picture.width
            assert y2 <= picture.height


@pytest.mark.parametrize("scene", [SMALL, FULL])
def test_the_number_of_objects_is_in_range(scene):
    counts = {len(objects) for _, objects in many(scene)}
    assert min(counts) >= scene["min_objects"]
    assert max(counts) <= scene["max_objects"]
    assert len(counts) > 3


def test_pictures_without_objects_come_only_when_allowed():
    empty = Counter(not objects for _, objects in many({**SMALL, "min_objects": 0}, 100))
    assert 0 < empty[True] < 20
    assert all(objects for _, objects in many(SMALL))


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_descriptions_have_two_or_three_levels_and_all_five_classes_appear(language):
    descriptions = [thing.description for _, objects in many({**SMALL, "language": language}) for thing in objects]
    assert {text.split("/")[0] for text in descriptions} == CLASSES[language]
    assert {len(text.split("/")) for text in descriptions} <= {2, 3}
    assert all(level.strip() for text in descriptions for level in text.split("/"))


def test_right_and_wrong_screws_present_and_missing_baffles_and_every_make_appear():
    descriptions = {thing.description for _, objects in many(SMALL, 150) for thing in objects}
    for beginning in (
        *(f"bbu/{make}/{state}" for make in ("huawei", "zte", "ericsson", "nokia") for state in ("running", "alarm")),
        *("screw/correct", "screw/wrong/no mark", "screw/wrong/loose", "screw/wrong/connector tilted"),
        *("wind baffle/installed", "wind baffle/missing", "slot/empty", "slot/filled"),
        *("label/readable/", "label/unreadable"),
    ):
        assert any(text.startswith(beginning) for text in descriptions), beginning


@pytest.mark.parametrize("angle", [-0.04, 0.0, 0.03])
def test_a_box_is_the_hull_of_what_the_turned_picture_shows(angle):
    camera = Camera(width=200, height=150, scale=2, margin=6, angle=angle)
    corners = [(120, 90), (300, 90), (300, 200), (120, 200)]
    canvas = Image.new("L", camera.canvas_size)
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    picture = canvas.transform((200, 150), Image.Transform.AFFINE, camera.coefficients(), Image.Resampling.BILINEAR)
    assert picture.getbbox() == pytest.approx(camera.hull(corners), abs=1.5)


def test_more_objects_than_a_picture_can_hold_is_an_error_that_says_what_to_change():
    with pytest.raises(InputError, match="data.max_objects"):
        draw(("crowd",), **{**SMALL, "min_objects": 400, "max_objects": 400})
