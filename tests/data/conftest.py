import pytest
from PIL import Image

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.types.samples import Object, Picture, Sample

NO_TEACHERS = TeacherDraw(teacher_ratio=0, num_teachers=0, num_validation_teachers=0, seed=1, validation_seed=1)


@pytest.fixture
def picture(tmp_path):
    """A function that writes a file and returns it as a Picture of 100 x 80 pixels.

    Objects are (box_xyxy, description)s; None for a picture without annotation. Files of the same `content`, a number
    from 0 to 255, have the same bytes.
    """

    def make(name, *objects, content):
        path = tmp_path / name
        Image.new("L", (8, 8), content).save(path)
        annotation = (
            None if objects == (None,) else tuple(Object(tuple(map(float, box)), text) for box, text in objects)
        )
        return Picture(path, 100, 80, annotation)

    return make


@pytest.fixture
def splits():
    """A function from the pictures of both splits to Splits; (student, teacher, ...) fixes the teachers of a sample.

    Sample ids are train:1, train:2, ..., validation:1, ...
    """

    def make(train, validation, counts=None):
        return Splits(_samples("train", train), _samples("validation", validation), NO_TEACHERS, counts or {})

    return make


def _samples(split, entries):
    each = [(entry, None) if isinstance(entry, Picture) else (entry[0], tuple(entry[1:])) for entry in entries]
    return tuple(Sample(f"{split}:{number}", *pair) for number, pair in enumerate(each, 1))
