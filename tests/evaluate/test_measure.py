from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.evaluate.measure import Conversations, default_max_new_tokens, measure
from bbu_train.predict.routes import Predictor
from bbu_train.types.samples import Object, Picture, Sample


@pytest.fixture
def data(make_picture):
    pictures = [make_picture(name, 84, 56, ((1, 2, 30, 40), "bbu/zte")) for name in ("one", "two", "three")]
    train = tuple(Sample(f"train.jsonl:{i}", picture, None) for i, picture in enumerate(pictures))
    return Splits(
        train,
        (),
        TeacherDraw(teacher_ratio=0, num_teachers=0, num_validation_teachers=2, seed=1, validation_seed=1),
        {},
    )


@pytest.fixture
def predictor(make_model, builder):
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=False)
    return Predictor(make_model(), builder, torch.device("cpu"), autocast, ("generated",), 8)


@pytest.fixture
def generate_truth(monkeypatch, builder):
    """A function that makes the model generate the true answers of the given pictures, batch by batch."""

    def patch(batches):
        batches = iter(batches)

        def answer(*_):
            rows = [
                [*builder.tokenizer.encode(builder.answer(picture)), builder.tokenizer.end] for picture in next(batches)
            ]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [builder.tokenizer.end] * (longest - len(row)) for row in rows])
            return (ids, torch.full(ids.shape, 0.5)), None

        monkeypatch.setattr("bbu_train.model.generation.generate", answer)

    return patch


def make_turned_picture(folder):
    """Upright it is 200 x 300; the file stores 300 x 200 with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "turned.jpg"
    Image.new("RGB", (300, 200), "grey").save(path, exif=exif)
    return Picture(path, 200, 300, (Object((20.0, 200.0, 120.0, 290.0), "bbu/zte/running"),))


def test_true_answers_score_1_on_turned_crowded_and_empty_pictures(
    data, predictor, generate_truth, builder, preprocessing, make_picture, tmp_path
):
    boxes = [(x, y, x + 20, y + 20) for x in range(0, 480, 24) for y in range(0, 360, 24)]
    crowded = make_picture("crowded-evaluated", 480, 360, *((box, f"{i % 7}/x") for i, box in enumerate(boxes)))
    pictures = [make_turned_picture(tmp_path), crowded, make_picture("bare-evaluated", 84, 56)]
    samples = [Sample(f"validation.jsonl:{i}", picture, None) for i, picture in enumerate(pictures)]
    generate_truth([pictures[:2], pictures[2:]])
    [row] = measure(predictor, [Conversations(data, samples, 1, builder, preprocessing)], 2, 0)
    assert len(boxes) == 300
    assert (row.route, row.num_teachers, row.num_pictures) == ("generated", 1, 3)
    for name in ("ap50", "f1", "matched", "description/exact", "description/level_2", "recall_100"):
        assert row.metrics[name] == pytest.approx(1.0, abs=0.3 if name == "recall_100" else 1e-9), name
    assert row.metrics["malformed"] == 0.0


def test_without_objects_and_without_a_head_only_metrics_that_need_neither_are_defined(
    data, predictor, builder, preprocessing, make_model, make_picture
):
    predictor = replace(predictor, model=make_model("head=none"))
    samples = [Sample("validation.jsonl:1", make_picture("bare-evaluated", 84, 56), None)]
    [row] = measure(predictor, [Conversations(data, samples, 0, builder, preprocessing)], 2, 0)
    assert set(row.metrics) == {"malformed", "student_lm", "seconds"}
    assert np.isfinite(list(row.metrics.values())).all()


def test_teachers_are_training_pictures_always_the_same_and_more_teachers_only_add_to_fewer(
    data, builder, preprocessing, samples
):
    none, one, two, again = (Conversations(data, samples, k, builder, preprocessing).samples for k in (0, 1, 2, 2))
    assert all(sample.teachers == () for sample in none)  # even if the data fixes teachers for a sample
    assert two == again
    for with_one, with_two in zip(one, two, strict=True):
        assert with_one.teachers == with_two.teachers[:1]
        assert set(with_two.teachers) <= set(data.pool)


def test_a_training_picture_is_not_its_own_teacher(data, builder, preprocessing):
    for sample in Conversations(data, data.train, 2, builder, preprocessing).samples:
        assert sample.student not in sample.teachers
    with pytest.raises(InputError, match="only 2 differ"):
        Conversations(data, data.train, 3, builder, preprocessing)


def test_conversations_with_more_tokens_than_the_model_has_positions_are_refused(data, builder, preprocessing, samples):
    short = replace(preprocessing, max_positions=100)
    with pytest.raises(
        InputError, match=r"teachers=2: the longest conversation would have .* (teachers=[01] fits|too long without)"
    ):
        Conversations(data, samples, 2, builder, short)


def test_by_default_an_answer_may_have_twice_the_tokens_of_the_longest_training_answer(builder, data):
    answer = builder.answer(data.train[0].student)
    assert default_max_new_tokens(builder, data.train) == 2 * (len(builder.tokenizer.encode(answer)) + 1)
