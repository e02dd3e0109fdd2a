"""The orders in which an answer names its objects."""

import json

import pytest
from conftest import build, configured

from bbu_train.conversation.answer import LAYOUTS, render
from bbu_train.conversation.order import ColumnOrder, ReadingOrder
from bbu_train.errors import InputError
from bbu_train.types.samples import Object

OBJECTS = [
    Object((40.0, 10.0, 50.0, 20.0), "screw/tight"),
    Object((30.0, 12.0, 50.0, 20.0), "label/a"),
    Object((10.0, 10.0, 20.0, 20.0), "screw/loose"),
    Object((10.0, 9.0, 60.0, 20.0), "screw"),
    Object((5.0, 40.0, 60.0, 70.0), "label"),
]


def labels_in_order(order, objects=OBJECTS):
    return [row["label"] for row in json.loads(render(objects, order, LAYOUTS["compact"], 1.0, 1.0, 100, 80))]


def test_reading_goes_from_top_to_bottom_and_then_from_left_to_right():
    assert labels_in_order(ReadingOrder()) == ["screw", "screw/loose", "screw/tight", "label/a", "label"]


@pytest.mark.parametrize(
    ("width", "labels", "screws"),
    [
        (100, ["label/a", "label"], ["screw", "screw/loose", "screw/tight"]),  # one column
        (30, ["label", "label/a"], ["screw", "screw/loose", "screw/tight"]),
        (40, ["label/a", "label"], ["screw", "screw/loose", "screw/tight"]),
    ],
)
def test_column_order_lists_one_class_after_the_other_and_each_column_by_column(width, labels, screws):
    assert labels_in_order(ColumnOrder(width)) == labels + screws


def test_within_a_column_the_higher_object_comes_first_even_if_another_is_further_left():
    tilted = [Object((12.0, 10.0, 20.0, 20.0), "screw/high"), Object((10.0, 30.0, 20.0, 40.0), "screw/low")]
    assert labels_in_order(ColumnOrder(20), tilted) == ["screw/high", "screw/low"]
    assert labels_in_order(ColumnOrder(12), tilted) == ["screw/low", "screw/high"]


@pytest.mark.parametrize("width", [0, -1, True])
def test_a_column_without_width_is_refused(width):
    with pytest.raises(InputError, match=f"conversation.order.width={width}"):
        ColumnOrder(width)


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_each_choice_of_conversation_has_its_order(language, preprocessing, make_picture):
    picture = make_picture("order", 112, 84, ((10, 10, 60, 40), "screw/loose"), ((70, 50, 100, 80), "label"))

    def labels_of(choice):
        make_builder = build(configured(f"conversation={choice}").conversation)
        answer = make_builder(preprocessing.tokenizer, preprocessing.picture_format).answer(picture)
        return [row["label"] for row in json.loads(answer)]

    assert labels_of(language) == ["screw/loose", "label"]
    assert labels_of(f"{language}_by_column") == ["label", "screw/loose"]
