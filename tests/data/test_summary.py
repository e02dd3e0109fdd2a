import json

import pytest

from bbu_train.data import summary
from bbu_train.data.findings import ReaderCounts

SCREW, LABEL = ((0, 0, 10, 20), "screw/m4"), ((5, 5, 35, 45), "label")


@pytest.fixture
def data(picture, splits):
    """Two splits that have everything that a summary counts."""
    one = picture("one.bmp", SCREW, LABEL, content=1)
    copy = picture("copy.bmp", SCREW, LABEL, content=1)
    empty, unknown = picture("empty.bmp", content=2), picture("unknown.bmp", None, content=3)
    teacher, other = picture("teacher.bmp", SCREW, content=4), picture("other.bmp", ((0, 0, 99, 2), "slot"), content=5)
    counts = {
        "train": ReaderCounts({"dropped: zero area": 2}, {"object/pose": 40, "folder": 4, "path": 4, "source": 4})
    }
    return splits([one, (copy, teacher), empty, unknown], [other, one, teacher], counts)


def summarize(data):
    return summary.summarize(data, summary.paths_with_first(data))


def test_a_summary_counts_what_each_split_holds(data):
    train, validation = summarize(data).splits.values()
    assert (train.num_pictures, train.num_empty, train.num_unannotated) == (4, 1, 1)
    assert (train.num_objects, train.num_objects_by_class) == (4, {"screw": 2, "label": 2})
    assert train.num_fixed_teachers == 1
    assert train.changed_objects == {"dropped: zero area": 2}
    assert train.unused_elements["object/pose"] == 40


def test_the_smallest_and_the_largest_box_are_those_of_least_and_most_area(data):
    train, validation = summarize(data).splits.values()
    assert train.smallest_box == summary.BoxSize(10, 20, "train:1")
    assert train.largest_box == summary.BoxSize(30, 40, "train:1")
    assert validation.smallest_box == summary.BoxSize(99, 2, "validation:1")  # long, but of less area than a screw


def test_the_longest_description_is_that_of_the_most_characters(data):
    longest = summarize(data).splits["train"].longest_description
    assert longest == summary.LongestDescription(8, "screw/m4", "train:1")


def test_a_split_without_objects_has_no_box_and_no_description(picture, splits):
    train = summarize(splits([picture("a.bmp", content=1)], [])).splits["train"]
    assert (train.smallest_box, train.largest_box, train.longest_description) == (None, None, None)


def test_repeated_pictures_are_those_of_the_same_bytes_under_any_name(data):
    """In validation, one is a student of training and one a teacher that training fixes."""
    result = summarize(data)
    assert [split.num_repeated for split in result.splits.values()] == [1, 0]
    assert result.num_in_both == 2


def test_a_summary_is_a_line_for_each_split_and_json(data):
    result = summarize(data)
    train, validation, *both = result.lines()
    assert train == (
        "train: 4 pictures with 4 objects of 2 classes (screw 2, label 2), smallest box 10 x 20, largest 30 x 40 pixels"
        ", 1 without an object, 1 unannotated, 1 repeated, 1 fixed teacher, 2 objects dropped: zero area"
    )
    assert validation.startswith("validation: ")
    assert both == [
        "2 pictures in both",
        "not used: object/pose, folder, path, source",
    ]
    assert json.loads(json.dumps(result.as_dict()))["splits"]["train"]["num_objects_by_class"]["screw"] == 2


def test_names_of_any_length_and_with_control_characters_stay_on_one_short_line(picture, splits):
    long = picture("a.bmp", ((0, 0, 9, 9), "x" * 500), ((0, 0, 9, 9), "two\nlines"), content=1)
    line = summarize(splits([long], [])).lines()[0]
    assert "x" * 37 + "... 1" in line
    assert "two\\x0alines 1" in line
