from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.evaluate.measure import Conversations, measured, twice_the_longest_answer
from bbu_train.predict.routes import Predictor
from bbu_train.types.samples import Object, Picture, Sample


@pytest.fixture
def data(make_picture):
    pictures = [make_picture(name, 84, 56, ((1, 2, 30, 40), "bbu/zte")) for name in ("one", "two", "three")]
    train = tuple(Sample(f"train.jsonl:{i}", picture, None) for i, picture in enumerate(pictures))
    return Splits(train, (), TeacherDraw(teacher_ratio=0, num_teachers=0, num_validation_teachers=2, seed=1), 0)


@pytest.fixture
def predictor(make_model, builder):
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=False)
    return Predictor(make_model(), builder, torch.device("cpu"), autocast, ("generated",), 8, 4)


@pytest.fixture
def saying_the_truth(monkeypatch, builder):
    """A function that puts the true answers of pictures, by the number of a batch, into the model's mouth."""

    def let(batches):
        batches = iter(batches)

        def answer(*_):
            written = [[*builder.text.ids(builder.answer(picture)), builder.text.end] for picture in next(batches)]
            longest = max(map(len, written))
            ids = torch.tensor([row + [builder.text.end] * (longest - len(row)) for row in written])
            return (ids, torch.full(ids.shape, 0.5)), None

        monkeypatch.setattr("bbu_train.model.generation.generate", answer)

    return let


def turned(folder):
    """Upright 200 x 300, stored lying."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "turned.jpg"
    Image.new("RGB", (300, 200), "grey").save(path, exif=exif)
    return Picture(path, 200, 300, (Object((20.0, 200.0, 120.0, 290.0), "bbu/zte/running"),))


def test_true_answers_score_1_on_turned_crowded_and_empty_pictures(
    data, predictor, saying_the_truth, builder, preprocessing, make_picture, tmp_path
):
    boxes = [(x, y, x + 20, y + 20) for x in range(0, 480, 24) for y in range(0, 360, 24)]
    crowded = make_picture("crowded-evaluated", 480, 360, *((box, f"{i % 7}/x") for i, box in enumerate(boxes)))
    pictures = [turned(tmp_path), crowded, make_picture("bare-evaluated", 84, 56)]
    samples = [Sample(f"validation.jsonl:{i}", picture, None) for i, picture in enumerate(pictures)]
    saying_the_truth([pictures[:2], pictures[2:]])
    [row] = measured(predictor, [Conversations(data, samples, 1, builder, preprocessing)], 2, 0)
    assert len(boxes) == 300
    assert (row.route, row.num_teachers, row.num_pictures) == ("generated", 1, 3)
    for name in ("ap50", "f1", "matched", "description/exact", "description/level_2", "recall_100"):
        assert row.metrics[name] == pytest.approx(1.0, abs=0.3 if name == "recall_100" else 1e-9), name
    assert row.metrics["malformed"] == 0.0


def test_without_any_object_and_any_head_only_what_needs_none_is_defined(
    data, predictor, builder, preprocessing, make_model, make_picture
):
    predictor = replace(predictor, model=make_model("head=none"))
    samples = [Sample("validation.jsonl:1", make_picture("bare-evaluated", 84, 56), None)]
    [row] = measured(predictor, [Conversations(data, samples, 0, builder, preprocessing)], 2, 0)
    assert set(row.metrics) == {"malformed", "student_lm", "seconds"}
    assert np.isfinite(list(row.metrics.values())).all()


def test_teachers_are_of_the_training_pictures_the_same_each_time_and_more_are_the_fewer_and_others(
    data, builder, preprocessing, samples
):
    none, one, two, again = (Conversations(data, samples, k, builder, preprocessing).samples for k in (0, 1, 2, 2))
    assert all(each.teachers == () for each in none)  # also of those whose data fixes some
    assert two == again
    for few, more in zip(one, two, strict=True):
        assert few.teachers == more.teachers[:1]
        assert set(more.teachers) <= set(data.pool)


def test_a_training_picture_is_not_its_own_teacher(data, builder, preprocessing):
    for sample in Conversations(data, data.train, 2, builder, preprocessing).samples:
        assert sample.student not in sample.teachers
    with pytest.raises(InputError, match="only 2 differ"):
        Conversations(data, data.train, 3, builder, preprocessing)


def test_conversations_that_the_model_has_no_positions_for_are_refused(data, builder, preprocessing, samples):
    short = SimpleNamespace(max_positions=100, cost=preprocessing.cost)
    with pytest.raises(InputError, match="teachers=2: the longest conversation would have"):
        Conversations(data, samples, 2, builder, short)


def test_an_answer_may_be_twice_as_long_as_the_longest_that_was_learned(builder, data):
    answer = builder.answer(data.train[0].student)
    assert twice_the_longest_answer(builder, data.train) == 2 * (len(builder.text.ids(answer)) + 1)
