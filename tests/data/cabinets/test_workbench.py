from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from bbu_train.data.cabinets.workbench import MAKES, draw
from bbu_train.errors import InputError
from bbu_train.metrics.constant_boxes import constant_predictions
from bbu_train.metrics.detection import detection_metrics
from bbu_train.types.samples import Picture, class_of

CONF = Path(__file__).parents[3] / "conf"
CLASSES = {"bbu", "wind baffle", "screw", "label"}


@cache
def scene():
    """The values with which the default data set is drawn."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = compose("data/synthetic_parts").data
    return {key: data[key] for key in ("width", "height", "min_objects", "max_objects", "language")}


@cache
def pictures(split, count):
    """The first pictures of the default data set, before they are saved."""
    drawn = [draw((0, split, index), **scene()) for index in range(count)]
    return [Picture(Path(f"{index}.jpg"), *image.size, objects) for index, (image, objects) in enumerate(drawn)]


def test_the_same_key_gives_the_same_picture_and_objects():
    first, again, other = (draw((3, "train", index), **scene()) for index in (8, 8, 9))
    assert first[0].tobytes() == again[0].tobytes() != other[0].tobytes()
    assert first[1] == again[1]


def test_a_picture_of_the_default_data_holds_one_to_four_parts_of_four_classes():
    assert {len(picture.objects) for picture in pictures("train", 120)} == {1, 2, 3, 4}
    descriptions = {each.description for picture in pictures("train", 120) for each in picture.objects}
    assert {class_of(text) for text in descriptions} == CLASSES
    assert {f"bbu/{make}" for make in MAKES} < descriptions
    assert {text.count("/") for text in descriptions} == {1}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_sizes_of_each_class_vary_threefold_and_it_lies_anywhere(name):
    found = [(picture, each) for picture in pictures("train", 120) for each in picture.objects]
    found = [(picture, each.box_xyxy) for picture, each in found if class_of(each.description) == name]
    areas = [(x2 - x1) * (y2 - y1) / (picture.width * picture.height) for picture, (x1, y1, x2, y2) in found]
    assert (max(areas) / min(areas)) ** 0.5 > 2.5
    for start, length in ((0, "width"), (1, "height")):
        centres = [(box[start] + box[start + 2]) / 2 / getattr(picture, length) for picture, box in found]
        assert min(centres) < 0.3
        assert max(centres) > 0.7


def test_parts_lie_whole_inside_the_picture_and_apart():
    for picture in pictures("train", 120):
        boxes = [each.box_xyxy for each in picture.objects]
        for x1, y1, x2, y2 in boxes:
            assert 0 < x1 < x2 < picture.width
            assert 0 < y1 < y2 < picture.height
        for first, second in combinations(boxes, 2):
            assert any(first[i + 2] < second[i] or second[i + 2] < first[i] for i in (0, 1))


def test_constant_boxes_find_few_parts():
    validation = pictures("validation", 60)
    predictions = constant_predictions(pictures("train", 120), validation, num_boxes=100, seed=17)
    assert detection_metrics(validation, predictions)["ap50"] < 0.15


def test_more_parts_than_a_picture_can_hold_is_an_error_that_says_what_to_change():
    with pytest.raises(InputError, match="data.max_objects"):
        draw(("crowd",), **{**scene(), "min_objects": 40, "max_objects": 40})
