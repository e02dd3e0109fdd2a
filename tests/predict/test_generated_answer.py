import numpy as np
import pytest

from bbu_train.predict import generated_answer
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object


def parse(builder, picture, text, probabilities=None):
    ids = [*builder.tokenizer.encode(text), builder.tokenizer.end]
    values = [0.5] * len(ids) if probabilities is None else probabilities(ids)
    return generated_answer.parse_generated(ids, values, picture, builder.tokenizer, builder.picture_format)


@pytest.fixture(scope="module")
def picture(make_picture):
    """Resized to 224 x 168 pixels for the model, half its width and height."""
    return make_picture("large", 448, 336, ((20, 30, 220, 130), "螺丝/符合要求"), ((100, 200, 400, 330), "bbu/huawei"))


def test_the_true_answer_is_parsed_into_the_true_boxes(builder, picture):
    answer = parse(builder, picture, builder.answer(picture))
    assert not answer.is_malformed
    assert answer.prediction.boxes_xyxy == pytest.approx(np.array([each.box_xyxy for each in picture.objects]), abs=2)
    assert answer.prediction.descriptions == tuple(each.description for each in picture.objects)
    assert answer.text == builder.answer(picture)


def test_the_score_of_a_box_is_the_mean_probability_of_its_objects_tokens(builder, picture):
    text = builder.answer(picture)
    second = text.index(", {") + 2

    def probabilities(ids):
        pieces = builder.tokenizer.pieces(ids)
        starts = np.cumsum([0, *map(len, pieces)])[:-1]
        return np.where(starts < second, 0.25, 0.75).tolist()

    scores = parse(builder, picture, text, probabilities).prediction.scores
    assert scores == pytest.approx(
        [0.25, 0.75], abs=0.02
    )  # one token may hold a closing bracket and the comma after it


def test_an_answer_that_was_cut_off_gives_its_complete_objects_and_is_malformed(builder, picture):
    text = builder.answer(picture)
    ids = builder.tokenizer.encode(text)
    for cut in range(len(ids)):
        answer = generated_answer.parse_generated(
            ids[:cut], [0.5] * cut, picture, builder.tokenizer, builder.picture_format
        )
        assert answer.is_malformed
        assert len(answer.prediction.scores) == answer.text.count("}")


def test_boxes_are_clipped_to_the_picture_and_left_out_if_nothing_remains(builder, picture):
    rows = ((-5, 10, 20, 900), (300, 0, 400, 50), (50, 50, 20, 90), (7, 7, 7, 9))
    text = ", ".join(f'{{"bbox_2d": {list(row)}, "label": "x"}}' for row in rows)
    answer = parse(builder, picture, f"[{text}]")
    assert answer.prediction.boxes_xyxy.tolist() == [[0, 20, 40, 336]]
    assert answer.prediction.descriptions == ("x",)
    assert answer.is_malformed


@pytest.mark.parametrize(("text", "is_malformed"), [("[]", False), ("", True), ("no objects", True)])
def test_an_answer_without_objects_is_empty_and_malformed_unless_it_is_an_empty_list(
    builder, picture, text, is_malformed
):
    answer = parse(builder, picture, text)
    assert answer.is_malformed is is_malformed
    assert answer.prediction.boxes_xyxy.shape == (0, 4)
    assert answer.prediction.scores.shape == (0,)


def test_300_objects_are_parsed(builder, make_picture):
    boxes = [(x, y, x + 8, y + 8) for x in range(0, 200, 10) for y in range(0, 150, 10)]
    crowded = make_picture("crowded", 224, 168, *((box, "screw/correct") for box in boxes))
    answer = parse(builder, crowded, builder.answer(crowded))
    assert len(answer.prediction.scores) == 300
    assert not answer.is_malformed


@pytest.mark.parametrize("seed", range(5))
def test_any_tokens_can_be_parsed(builder, picture, seed):
    random = generator("any tokens", seed)
    ids = random.integers(0, 800, 400).tolist()
    answer = generated_answer.parse_generated(
        ids, random.random(400).tolist(), picture, builder.tokenizer, builder.picture_format
    )
    assert answer.is_malformed
    assert (answer.prediction.scores <= 1).all()


def test_scores_belong_to_the_boxes_that_are_kept(builder, picture):
    good, bad = (f'{{"bbox_2d": [{left}, 0, 20, 20], "label": "x"}}' for left in (5, 30))
    answer = parse(builder, picture, f"[{bad}, {good}]", lambda ids: np.linspace(0, 1, len(ids)).tolist())
    assert answer.prediction.scores == pytest.approx([0.75], abs=0.05)
    assert Object(tuple(answer.prediction.boxes_xyxy[0]), "x") == Object((10, 0, 40, 40), "x")
