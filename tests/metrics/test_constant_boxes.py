import numpy as np
import pytest
from scored import A, B, C, picture

from bbu_train.metrics.constant_boxes import constant_predictions
from bbu_train.metrics.detection import detection_metrics
from bbu_train.runtime.seeds import generator


def test_constant_boxes_lie_where_most_training_boxes_lie():
    train = [picture((A, "x/1")), picture((A, "x/2"), size=(100, 100)), picture((C, "x")), picture((B, "y"))]
    constant, wide = constant_predictions(train, [picture(), picture(size=(200, 100))], num_boxes=4, seed=1)
    order = np.argsort(-constant.scores)
    assert constant.boxes_xyxy[order] == pytest.approx(np.array([B, A, C], dtype=float))
    assert constant.scores[order] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [constant.descriptions[i] for i in order] == ["y", "x", "x"]
    assert wide.boxes_xyxy == pytest.approx(constant.boxes_xyxy * [2, 1, 2, 1])


def test_constant_boxes_depend_on_the_seed_and_have_the_requested_number():
    random = generator("constant", 0)
    corners = random.uniform(0, 50, (60, 2))
    train = [picture(*((tuple(xy) + tuple(xy + 20), f"class{i % 3}") for i, xy in enumerate(corners)))]
    first, again, other = (constant_predictions(train, [picture()], 15, seed)[0] for seed in (1, 1, 2))
    assert len(first.scores) == 15
    assert (first.boxes_xyxy == again.boxes_xyxy).all()
    assert (first.boxes_xyxy != other.boxes_xyxy).any()


def test_without_training_objects_the_constant_prediction_is_empty():
    constant = constant_predictions([picture()], [picture((A, "x"))], 10, seed=1)
    assert detection_metrics([picture((A, "x"))], constant)["ap"] == 0.0
