import pytest

from bbu_train.data.summary import paths_with_first
from bbu_train.data.suspicions import find_suspicions
from bbu_train.types.samples import Object, Picture

BOX, OTHER_BOX = (0, 0, 10, 20), (5, 5, 35, 45)
SCREW = (BOX, "screw")


def suspicions(data):
    return find_suspicions(data, paths_with_first(data))


@pytest.fixture
def number():
    """A function that gives another number at each call: pictures of other bytes."""
    numbers = iter(range(256))
    return lambda: next(numbers)


@pytest.fixture
def with_objects(picture, number):
    """A function from objects to a new picture that has them."""

    def make(*objects):
        content = number()
        return picture(f"{content}.bmp", *objects, content=content)

    return make


def test_good_data_is_not_suspicious(with_objects, splits):
    train = [with_objects(SCREW, (OTHER_BOX, "label/readable")), with_objects(), with_objects(SCREW, (BOX, "label"))]
    assert suspicions(splits(train, [with_objects(SCREW, (OTHER_BOX, "label/torn"))])) == []


def test_a_split_without_an_object_is_said(with_objects, splits):
    empty = [with_objects(), with_objects()]
    (text,) = suspicions(splits(empty, [with_objects(SCREW)]))
    assert text.startswith("train: 2 pictures without an object") and text.endswith("First: train:1")
    (text,) = suspicions(splits([with_objects(SCREW)], empty[:1]))
    assert text.startswith("validation: 1 picture without an object")


def test_a_split_of_nothing_but_unannotated_pictures_is_without_objects(with_objects, splits):
    (text,) = suspicions(splits([with_objects(None)], [with_objects(SCREW)]))
    assert text.startswith("train: 1 picture without an object")


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.4, 0.7), (0, 0, 1, 1)])
def test_boxes_that_were_divided_by_the_size_of_their_picture_are_said(with_objects, splits, box):
    train = [with_objects(SCREW), with_objects(SCREW, (box, "screw"))]
    (text,) = suspicions(splits(train, [with_objects(SCREW)]))
    assert text.startswith("train: 1 of 3 boxes are within the top left pixel")
    assert "divided by its size? First: train:2 [" in text


@pytest.mark.parametrize("box", [(3, 4, 3.5, 60), (3, 4, 60, 4.9)])
def test_boxes_that_are_all_thinner_than_a_pixel_are_said(with_objects, splits, box):
    (text,) = suspicions(splits([with_objects(SCREW)], [with_objects((box, "screw"))]))
    assert text.startswith("validation: 1 of 1 boxes are less than a pixel wide or high") and "divided" not in text
    assert suspicions(splits([with_objects(SCREW)], [with_objects(SCREW, (box, "screw"))])) == []  # one is no sign


@pytest.mark.parametrize("description", ["screw/", "/m4", "screw//m4", "screw/\nm4", "screw\x00"])
def test_descriptions_with_an_empty_level_or_a_control_character_are_said(with_objects, splits, description):
    pair = SCREW, (OTHER_BOX, description)
    texts = suspicions(splits([with_objects(*pair)], [with_objects(*pair)]))
    assert any(text.startswith("2 descriptions with an empty level") and "in train:1" in text for text in texts)


def test_a_box_of_a_pixel_is_a_box(with_objects, splits):
    assert suspicions(splits([with_objects(((3, 4, 4, 5), "screw"))], [with_objects(SCREW)])) == []


def test_classes_of_one_split_are_said(with_objects, splits):
    train = [with_objects(SCREW, (BOX, "slot/empty")), with_objects((BOX, "fan"))]
    first, second = suspicions(splits(train, [with_objects(SCREW, (BOX, "cable"))]))
    assert first.startswith("2 classes are in train but not in validation") and first.endswith(
        'First: "slot" in train:1'
    )
    assert second.startswith("1 class is in validation but not in train") and second.endswith('"cable" in validation:1')


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("screw", "Screw"),
        ("wind baffle", "windbaffle"),
        ("screw/M 4", "screw/m4"),
        ("Screw/m4", "screw/m5"),
        ("ａ　１", "a 1"),
        ("scr\u200bew", "screw"),
    ],
)
def test_descriptions_that_differ_in_case_or_blanks_only_are_said_once(with_objects, splits, one, other):
    pictures = [with_objects((BOX, one)), with_objects((BOX, other)), with_objects((BOX, one), (OTHER_BOX, other))]
    (text,) = [text for text in suspicions(splits(pictures[:2], pictures[2:])) if "spelled" in text]
    assert text.startswith("1 level of descriptions is spelled in several ways")
    assert " in train:1, " in text and text.endswith(" in train:2")


def test_a_picture_in_training_and_validation_is_said_under_any_name(picture, splits):
    student, teacher = picture("a.bmp", SCREW, content=1), picture("b.bmp", SCREW, content=2)
    copies = [picture("copy.bmp", SCREW, content=1), picture("copy2.bmp", SCREW, content=2)]
    (text,) = suspicions(splits([(student, teacher)], [picture("c.bmp", SCREW, content=3), *copies]))
    assert text.startswith("2 validation pictures are also in training")
    assert text.endswith("First: copy.bmp (validation, validation:2) is a.bmp (train, train:1)")


def test_a_validation_picture_with_teachers_from_training_is_not_in_training(picture, splits):
    student, other = picture("a.bmp", SCREW, content=1), picture("b.bmp", SCREW, content=2)
    assert suspicions(splits([student], [(other, student)])) == []


def test_one_tuple_of_samples_for_both_splits_is_meant(with_objects, splits):
    """As data=overfit has it."""
    data = splits([with_objects(SCREW)], [])
    same = type(data)(data.train, data.train, data.teachers, {})
    assert suspicions(same) == []


def test_identical_objects_of_a_picture_are_said(with_objects, splits):
    train = [with_objects(SCREW), with_objects(SCREW, (OTHER_BOX, "screw"), SCREW, SCREW)]
    (text,) = suspicions(splits(train, [with_objects(SCREW)]))
    assert text.startswith("2 objects with the same box and description") and text.endswith("First: train:2")


def test_annotations_of_the_same_bytes_that_differ_are_said(picture, splits):
    """Of a student or a teacher, also where the copies are in one split; the order of objects is no difference."""
    pair = (SCREW, (OTHER_BOX, "screw"))
    a, again = picture("a.bmp", *pair, content=1), picture("again.bmp", *reversed(pair), content=1)
    other = picture("other.bmp", SCREW, content=1)
    unknown = picture("unknown.bmp", None, content=1)
    fine = picture("b.bmp", SCREW, content=2)
    assert suspicions(splits([a, again, unknown], [fine])) == []
    (text,) = suspicions(splits([a, again, other], [fine]))
    assert text == "1 picture has several annotations that differ. First: a.bmp in train:1 and train:3"
    (text,) = suspicions(splits([a, (fine, other)], [picture("c.bmp", SCREW, content=3)]))
    assert text.endswith("a.bmp in train:1 and train:2")


def test_difficult_objects_that_are_left_out_are_no_contradiction(picture, splits):
    path = picture("a.bmp", content=1).path
    objects = Object(tuple(map(float, BOX)), "screw"), Object(tuple(map(float, OTHER_BOX)), "screw")
    whole, without = Picture(path, 100, 80, objects), Picture(path, 100, 80, objects[:1], ignored=objects[1:])
    data = splits([whole, without], [picture("b.bmp", SCREW, content=2)])
    assert suspicions(data) == []


def test_the_objects_of_fixed_teachers_are_looked_at_too(with_objects, splits):
    twice = with_objects(SCREW, SCREW)
    texts = suspicions(splits([(with_objects(SCREW), twice, with_objects((BOX, "SCREW")))], [with_objects(SCREW)]))
    assert ["same box and description" in texts[1], "spelled" in texts[0], len(texts)] == [True, True, 2]


def test_a_validation_split_of_difficult_objects_has_none_that_is_scored(picture, with_objects, splits):
    path = picture("difficult.bmp", content=200).path
    difficult = Picture(path, 100, 80, (Object(tuple(map(float, BOX)), "screw", is_difficult=True),))
    (text,) = suspicions(splits([with_objects(SCREW)], [difficult]))
    assert text.startswith("validation: 1 picture without an object")
    assert suspicions(splits([difficult], [with_objects(SCREW)])) == []


@pytest.mark.parametrize(("one", "other"), [("m²", "m2"), ("Maße", "Masse"), ("é", "e")])
def test_descriptions_that_differ_in_letters_are_different(with_objects, splits, one, other):
    pair = (BOX, one), (OTHER_BOX, other)
    assert suspicions(splits([with_objects(*pair)], [with_objects(*pair)])) == []
