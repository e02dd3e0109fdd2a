"""The layouts of a step that the config allows, the fastest first."""

from bbu_train.runs.settings import AUTO
from bbu_train.training.layout import Layout, candidates


def test_layouts_are_tried_in_the_order_of_their_time():
    expected = [
        ("none", 1),
        ("vision", 1),
        ("selective", 1),
        ("none", 2),
        ("full", 1),
        ("full", 2),
        ("full", 4),
        ("full", 6),
    ]
    assert candidates(AUTO, AUTO, 6) == [Layout(*each) for each in expected]


def test_one_sample_a_step_has_no_further_micro_batches():
    assert candidates(AUTO, AUTO, 1) == [Layout(each, 1) for each in ("none", "vision", "selective", "full")]


def test_a_given_value_is_kept():
    assert candidates("selective", AUTO, 4) == [Layout("selective", count) for count in (1, 2, 4)]
    assert candidates(AUTO, 3, 8) == [Layout(choice, 3) for choice in ("none", "vision", "selective", "full")]
    assert candidates("full", 3, 8) == [Layout("full", 3)]
