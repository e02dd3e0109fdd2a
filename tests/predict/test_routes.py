from functools import partial

import numpy as np
import pytest
import torch

from bbu_train.images.overlay import COLORS
from bbu_train.predict.routes import Predictor
from bbu_train.predict.show import drawn, line
from bbu_train.training import validation
from bbu_train.types.samples import Object, Picture, Sample


@pytest.fixture
def predictor(make_model, builder):
    """A function from routes to a predictor with an untrained model."""
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=False)
    return lambda *routes: Predictor(make_model(), builder, torch.device("cpu"), autocast, routes, 8, 4)


def found_by(predictor, samples):
    [(group, prompts)] = predictor.prompts(samples, len(samples), 0)
    return predictor(group, prompts)


def test_the_head_says_what_it_says_in_evaluation(predictor, samples, encoded, collate, builder):
    predictor = predictor("head", "generated")
    with torch.no_grad():
        detections = predictor.model(collate("packed", encoded)).detections
    expected = validation.predict(detections, samples, builder.text, 4)
    for found in found_by(predictor, samples):
        reference = expected[found.sample.id]
        np.testing.assert_allclose(found.head.boxes_xyxy, reference.boxes_xyxy, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.head.scores, reference.scores, rtol=1e-4)
        assert found.head.descriptions == reference.descriptions


@pytest.mark.parametrize("route", ["head", "generated"])
def test_a_route_by_itself_says_what_it_says_beside_the_other(predictor, samples, route):
    for alone, both in zip(
        found_by(predictor(route), samples), found_by(predictor("head", "generated"), samples), strict=True
    ):
        one, other = (line(found, 0.0) for found in (alone, both))
        assert {"head", "generated"} & set(one) == {route}
        assert one[route].keys() == other[route].keys()
        assert len(one[route]["objects"]) == len(other[route]["objects"])
        assert [each["label"] for each in one[route]["objects"]] == [each["label"] for each in other[route]["objects"]]


def test_an_untrained_model_is_malformed_and_shown_nevertheless(predictor, samples):
    found = found_by(predictor("head", "generated"), samples[:1])[0]
    row = line(found, 1.0)
    assert row["head"]["objects"] == row["generated"]["objects"] == []
    assert row["generated"]["num_malformed"] == 1
    assert len(row["true"]) == 3
    assert len(row["teachers"]) == 2
    assert drawn(found, 1.0).width > 1600


def test_what_the_head_finds_lies_in_the_picture_and_comes_best_first(predictor, make_picture):
    unknown = make_picture("unknown", 300, 200)
    sample = Sample("x", Picture(unknown.path, 300, 200, None), ())
    row = line(found_by(predictor("head"), [sample])[0], 0.0)
    boxes = np.array([each["bbox_2d"] for each in row["head"]["objects"]])
    assert len(boxes) == 12
    assert ((boxes >= 0) & (boxes <= [300, 200, 300, 200])).all()
    scores = [each["score"] for each in row["head"]["objects"]]
    assert scores == sorted(scores, reverse=True)
    assert "true" not in row
    assert "generated" not in row


def test_a_written_answer_comes_out_in_pixels_of_the_original_and_in_the_colours_of_its_classes(
    predictor, make_picture, monkeypatch, builder
):
    """The model's words are put into its mouth: those of the true answer, in Chinese."""
    boxes = ((20, 30, 220, 130), "螺丝/符合要求"), ((100, 200, 400, 330), "机柜空间/空")
    picture = make_picture("chinese", 448, 336, *boxes)
    predictor = predictor("generated")
    ids = torch.tensor([[*builder.text.ids(builder.answer(picture)), builder.text.end]])
    said = (ids, torch.full(ids.shape, 0.5)), None
    monkeypatch.setattr("bbu_train.model.generation.generate", lambda *_: said)
    (found,) = found_by(predictor, [Sample("x", picture, ())])
    row = line(found, 0.5)
    assert [each["label"] for each in row["generated"]["objects"]] == ["螺丝/符合要求", "机柜空间/空"]
    assert [each["class"] for each in row["generated"]["objects"]] == ["螺丝", "机柜空间"]
    assert [each["score"] for each in row["generated"]["objects"]] == [0.5, 0.5]
    for each, (box, _) in zip(row["generated"]["objects"], boxes, strict=True):
        assert each["bbox_2d"] == pytest.approx(box, abs=2)
    assert row["generated"]["num_malformed"] == 0
    pixels = np.unique(np.asarray(drawn(found, 0.5)).reshape(-1, 3), axis=0)
    assert len(set(map(tuple, pixels.tolist())) & set(COLORS)) == 2


def test_300_objects_are_written_and_drawn(predictor, make_picture, monkeypatch, builder):
    boxes = [(x, y, x + 8, y + 8) for x in range(0, 200, 10) for y in range(0, 150, 10)]
    crowded = make_picture("crowded", 224, 168, *((box, f"class{i % 20}") for i, box in enumerate(boxes)))
    ids = torch.tensor([[*builder.text.ids(builder.answer(crowded)), builder.text.end]])
    monkeypatch.setattr("bbu_train.model.generation.generate", lambda *_: ((ids, torch.ones(ids.shape)), None))
    (found,) = found_by(predictor("generated"), [Sample("x", crowded, ())])
    assert len(line(found, 0.5)["generated"]["objects"]) == 300
    assert drawn(found, 0.5).height < 1200
    assert Object(boxes[0], "class0") in crowded.objects
