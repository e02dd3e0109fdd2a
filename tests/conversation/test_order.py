"""The orders in which an answer names its objects."""

import json

import pytest
from conftest import build, configured

from bbu_train.conversation.answer import render
from bbu_train.conversation.order import ByClass, Reading
from bbu_train.types import Object

OBJECTS = [
    Object((40.0, 10.0, 50.0, 20.0), "screw/tight"),
    Object((30.0, 12.0, 50.0, 20.0), "label/a"),
    Object((10.0, 10.0, 20.0, 20.0), "screw/loose"),
    Object((10.0, 9.0, 60.0, 20.0), "screw"),
    Object((5.0, 40.0, 60.0, 70.0), "label"),
]


def named(order) -> list[str]:
    return [row["label"] for row in json.loads(render(OBJECTS, order, 1.0, 1.0, 100, 80))]


def test_reading_goes_from_top_to_bottom_and_then_from_left_to_right():
    assert named(Reading()) == ["screw", "screw/loose", "screw/tight", "label/a", "label"]


def test_by_class_names_one_class_after_the_other_and_each_as_reading_does():
    assert named(ByClass()) == ["label/a", "label", "screw", "screw/loose", "screw/tight"]


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_a_conversation_is_ordered_as_its_choice_says(language, preprocessing, make_picture):
    picture = make_picture("order", 112, 84, ((10, 10, 60, 40), "screw/loose"), ((70, 50, 100, 80), "label"))

    def named(choice):
        made = build(configured(f"conversation={choice}").conversation)
        answer = made(preprocessing.tokenizer, preprocessing.picture_format).answer(picture)
        return [row["label"] for row in json.loads(answer)]

    assert named(language) == ["screw/loose", "label"]
    assert named(f"{language}_by_class") == ["label", "screw/loose"]
