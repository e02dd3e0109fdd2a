import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scored import picture, prediction
from torch import nn

from bbu_train.data.annotations import PictureChecker
from bbu_train.data.jsonl_line import LineReader
from bbu_train.images.colors import COLORS, ClassColors
from bbu_train.metrics.picture_bounds import clip_to_picture
from bbu_train.ops import boxes
from bbu_train.predict.routes import PicturePredictions, Predictor
from bbu_train.predict.show import draw_predictions, to_row
from bbu_train.training import validation
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Object, Picture, Sample


@pytest.fixture
def make_predictor(make_model, builder):
    """A function from routes to a predictor with an untrained model."""
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=False)
    return lambda *routes: Predictor(make_model(), builder, torch.device("cpu"), autocast, routes, 8)


@pytest.fixture
def generate_truth(monkeypatch, builder):
    """A function that makes the model generate the true answer of a picture, each token with `probability`."""

    def patch(picture, probability):
        ids = torch.tensor([[*builder.tokenizer.encode(builder.answer(picture)), builder.tokenizer.end]])
        answer = (ids, torch.full(ids.shape, probability)), None
        monkeypatch.setattr("bbu_train.model.generation.generate", lambda *_: answer)

    return patch


def predict(predictor, samples):
    [(group, prompts)] = predictor.prompts(samples, len(samples), 0)
    return predictor(group, prompts)


def described(row):
    return [each["desc"] for each in (*row["objects"], *row["unusable"])]


def test_the_head_predicts_what_it_predicts_in_validation(make_predictor, samples, encoded, collate, builder):
    predictor = make_predictor("head", "generated")
    with torch.no_grad():
        detections = predictor.model(collate("packed", encoded)).detections
    expected = validation.predict(detections, samples, builder.tokenizer)
    for predictions in predict(predictor, samples):
        reference = expected[predictions.sample.id]
        np.testing.assert_allclose(predictions.head.boxes_xyxy, reference.boxes_xyxy, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(predictions.head.scores, reference.scores, rtol=1e-4)
        assert predictions.head.descriptions == reference.descriptions


def test_a_route_alone_predicts_what_it_predicts_with_the_other(make_predictor, samples):
    predictor = make_predictor("head", "generated")
    together = predict(predictor, samples)
    for route in ("head", "generated"):
        for one, both in zip(predict(replace(predictor, routes=(route,)), samples), together, strict=True):
            assert (one.head is None, one.generated is None) == (route != "head", route != "generated")
            row, other = to_row(one, route, 0.0), to_row(both, route, 0.0)
            assert row.keys() == other.keys()
            assert described(row) == described(other)


def test_an_untrained_model_is_malformed_and_is_still_drawn(make_predictor, samples):
    [predictions] = predict(make_predictor("head", "generated"), samples[:1])
    head, generated = (to_row(predictions, route, 1.0) for route in ("head", "generated"))
    assert head["objects"] == head["unusable"] == generated["objects"] == generated["unusable"] == []
    assert generated["is_malformed"] is True
    for row in (head, generated):
        assert (len(row["true_objects"]), len(row["teacher_images"])) == (3, 2)
    assert draw_predictions(predictions, 1.0, ClassColors(())).width > 1600


def test_the_heads_boxes_lie_inside_the_picture_and_are_sorted_by_score(make_predictor, make_picture):
    picture = make_picture("unknown", 300, 200)
    sample = Sample("x", Picture(picture.path, 300, 200, None), ())
    row = to_row(predict(make_predictor("head"), [sample])[0], "head", 0.0)
    objects = row["objects"] or row["unusable"]
    corners = np.array([each["bbox_2d"] for each in objects])
    assert len(corners) == 12
    assert ((corners >= 0) & (corners <= [300, 200, 300, 200])).all()
    scores = [each["score"] for each in objects]
    assert scores == sorted(scores, reverse=True)
    assert not {"true_objects", "answer"} & row.keys()


def test_a_generated_answer_has_boxes_in_original_pixels_and_the_colours_of_its_classes(
    make_predictor, make_picture, generate_truth
):
    boxes = ((20, 30, 220, 130), "螺丝/符合要求"), ((100, 200, 400, 330), "机柜空间/空")
    picture = make_picture("chinese", 448, 336, *boxes)
    generate_truth(picture, 0.5)
    (predictions,) = predict(make_predictor("generated"), [Sample("x", picture, ())])
    row = to_row(predictions, "generated", 0.5)
    assert [each["desc"] for each in row["objects"]] == ["螺丝/符合要求", "机柜空间/空"]
    assert [each["score"] for each in row["objects"]] == [0.5, 0.5]
    for each, (box, _) in zip(row["objects"], boxes, strict=True):
        assert each["bbox_2d"] == pytest.approx(box, abs=2)
    assert row["is_malformed"] is False
    pixels = np.unique(np.asarray(draw_predictions(predictions, 0.5, ClassColors(()))).reshape(-1, 3), axis=0)
    assert len(set(map(tuple, pixels.tolist())) & set(COLORS)) == 2


def test_objects_that_no_data_set_can_hold_are_kept_apart(make_picture, tmp_path):
    picture = make_picture("found", 60, 40)
    good = [((1, 2, 30, 20), "screw/m4"), ((0, 0, 60, 40), "机柜空间/空 ")]
    bad = [((1, 2, 3, 4), ""), ((1, 2, 3, 4), " / "), ((1, 2, 3, 4), "\ud83d"), ((1, 2, 1.001, 4), "screw")]
    boxes = np.array([box for box, _ in good + bad], dtype=float)
    found = Prediction(boxes, np.linspace(0.9, 0.4, 6), tuple(text for _, text in good + bad))
    row = to_row(PicturePredictions(Sample("x", picture, ()), found, None), "head", 0.0)
    assert [(tuple(each["bbox_2d"]), each["desc"]) for each in row["objects"]] == good
    assert [each["desc"] for each in row["unusable"]] == [text for _, text in bad]
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")
    reading = LineReader("predictions.jsonl:1", tmp_path, PictureChecker("error")).read(line)
    assert reading.findings == []
    assert [each.box_xyxy for each in reading.sample.student.objects] == [box for box, _ in good]


def test_every_prediction_lies_inside_its_picture_before_it_is_scored(
    make_predictor, samples, builder, collate, encoded
):
    predictor = make_predictor("head")
    nn.init.constant_(predictor.model.head.box[-1].bias, 2.0)  # large boxes near the lower right corner
    with torch.no_grad():
        detections = predictor.model(collate("packed", encoded)).detections
    assert (boxes.cxcywh_to_xyxy(detections.boxes_cxcywh[-1]) > 1).any()
    training = validation.predict(detections, samples, builder.tokenizer)
    for predictions in predict(predictor, samples):
        size = predictions.sample.student.width, predictions.sample.student.height
        for clipped in (predictions.head, training[predictions.sample.id]):
            assert len(clipped.scores) == 12
            assert clipped.boxes_xyxy.min() >= 0
            assert (clipped.boxes_xyxy[:, 2:].max(axis=0) == size).all()


def test_a_box_without_area_in_the_picture_is_left_out_and_others_are_cut():
    rows = ((-5, 10, 20, 900), 0.9, "a/1"), ((30, 50, 10, 90), 0.8, "b"), ((101, 0, 120, 50), 0.7, "c")
    clipped = clip_to_picture(prediction(*rows, ((1, 2, 3, 4), 0.6, "d")), picture())
    assert clipped.boxes_xyxy.tolist() == [[0, 10, 20, 100], [1, 2, 3, 4]]
    assert clipped.scores.tolist() == [0.9, 0.6]
    assert clipped.descriptions == ("a/1", "d")


def test_300_objects_are_listed_and_drawn(make_predictor, make_picture, generate_truth):
    boxes = [(x, y, x + 8, y + 8) for x in range(0, 200, 10) for y in range(0, 150, 10)]
    crowded = make_picture("crowded", 224, 168, *((box, f"class{i % 20}") for i, box in enumerate(boxes)))
    generate_truth(crowded, 1.0)
    (predictions,) = predict(make_predictor("generated"), [Sample("x", crowded, ())])
    assert len(to_row(predictions, "generated", 0.5)["objects"]) == 300
    assert draw_predictions(predictions, 0.5, ClassColors(())).height < 1200
    assert Object(boxes[0], "class0") in crowded.objects
