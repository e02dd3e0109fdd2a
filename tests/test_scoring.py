from pathlib import Path

import numpy as np
import pytest
from mlflow.utils.validation import _validate_metric_name

from bbu_train.scoring import Prediction, class_of, constant_predictions, score
from bbu_train.seeds import generator
from bbu_train.types import Object, Picture


def picture(*objects, size=(100, 100)):
    return Picture(Path("a.png"), *size, tuple(Object(tuple(map(float, box)), text) for box, text in objects))


def prediction(*found):
    boxes, scores, descriptions = zip(*found, strict=True) if found else ((), (), ())
    return Prediction(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores, dtype=float), descriptions)


def perfect(picture):
    return prediction(*((each.box_xyxy, 0.9, each.description) for each in picture.objects))


A, B, C = (0, 0, 10, 10), (20, 20, 40, 30), (50, 50, 60, 60)
PICTURES = [picture((A, "螺丝/正确"), (B, "bbu/huawei")), picture(), picture((C, "螺丝"))]


def test_the_class_is_the_first_level_of_the_description():
    assert [class_of(text) for text in ("bbu/huawei/new", "bbu", "")] == ["bbu", "bbu", ""]


def test_perfect_predictions_score_1():
    result = score(PICTURES, [perfect(each) for each in PICTURES])
    assert result.pop("f1_threshold") == 0.9
    assert result == pytest.approx(dict.fromkeys(result, 1.0))
    assert {"ap", "ap50", "ap75", "ap50/bbu", "ap50/螺丝", "agnostic_ap", "agnostic_ap50", "f1"} == set(result)


def test_boxes_in_the_wrong_place_and_no_boxes_at_all_score_0():
    for found in ([((70, 70, 80, 80), 0.9, "bbu")], []):
        result = score(PICTURES, [prediction(*found)] * 3)
        assert result.pop("f1_threshold") == 1.0
        assert set(result.values()) == {0.0}


def test_a_mixed_case_worked_out_by_hand():
    # One class, two true objects. Found by score: exact (0.9), nothing there (0.8), IoU 0.62 (0.7).
    # The 101 recall points see precision 1 up to recall 0.50, then 2/3 where IoU 0.62 is enough (0.50, 0.55, 0.60).
    pictures = [picture((A, "x")), picture((A, "x"))]
    predictions = [prediction((A, 0.9, "x"), (C, 0.8, "x")), prediction(((0, 0, 10, 6.2), 0.7, "x"))]
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    result = score(pictures, predictions)
    assert result["ap50"] == pytest.approx(loose)
    assert result["ap75"] == pytest.approx(strict)
    assert result["ap"] == pytest.approx((3 * loose + 7 * strict) / 10)
    assert (result["f1"], result["f1_threshold"]) == (pytest.approx(0.8), 0.7)  # 2 hits, 3 predicted, 2 true


def test_average_precision_is_the_mean_over_classes_not_over_objects():
    pictures = [picture((A, "x"), (B, "x"), (C, "y"))]
    result = score(pictures, [prediction((A, 0.9, "x"), (B, 0.9, "x"))])
    assert (result["ap50/x"], result["ap50/y"], result["ap50"]) == pytest.approx((1, 0, 0.5))


def test_a_prediction_of_another_class_counts_in_the_agnostic_numbers_only():
    pictures = [picture((A, "x"), (B, "y"))]
    found = [(A, 0.9, "x"), (B, 0.8, "y")]
    with_unknown = score(pictures, [prediction(*found, (C, 0.95, "screw"))])
    assert with_unknown["ap"] == with_unknown["f1"] == 1.0
    assert with_unknown["agnostic_ap50"] == pytest.approx(2 / 3)
    swapped = score(pictures, [prediction((A, 0.9, "y"), (B, 0.8, "x"))])
    assert (swapped["ap50"], swapped["agnostic_ap50"]) == (0.0, 1.0)


def test_without_any_true_object_nothing_is_defined():
    assert score([picture()], [prediction((A, 0.9, "x"))]) == {}


def test_pictures_that_nobody_annotated_are_left_out():
    unknown = Picture(Path("b.png"), 100, 100, None)
    found = prediction((A, 0.9, "x"))
    assert score([picture((A, "x")), unknown], [found, found])["agnostic_ap50"] == 1.0


def test_of_300_objects_in_a_picture_cocos_100_count():
    boxes = [(x, y, x + 4, y + 4) for x in range(0, 100, 5) for y in range(0, 75, 5)]
    crowded = picture(*((box, "x") for box in boxes))
    result = score([crowded], [perfect(crowded)])
    assert result["ap"] == pytest.approx(34 / 101)  # recall points 0.00 to 0.33
    assert result["f1"] == 1.0


def test_class_names_become_metric_names_that_mlflow_takes_and_stay_apart():
    names = ["螺丝 (M6)", "a+b", "a*b", "", "..", "x" * 300]
    pictures = [picture(*((A, name) for name in names))]
    result = score(pictures, [perfect(pictures[0])])
    assert sum(name.startswith("ap50/") for name in result) == len(names)
    for name in result:
        _validate_metric_name("eval/" + name)
    assert max(map(len, result)) <= 245


def brute_force_f1(pictures, predictions):
    """The best F1 over all thresholds, each matched anew."""
    best = 0.0
    for threshold in {value for each in predictions for value in each.scores}:
        num_hits = num_predicted = 0
        for truth, found in zip(pictures, predictions, strict=True):
            free = list(truth.objects)
            chosen = [i for i in np.argsort(-found.scores, kind="stable") if found.scores[i] >= threshold]
            num_predicted += len(chosen)
            for i in chosen:
                rivals = [
                    (iou(found.boxes_xyxy[i], t.box_xyxy), t) for t in free if t.description == found.descriptions[i]
                ]
                overlap, target = max(rivals, key=lambda rival: rival[0], default=(0.0, None))
                if overlap >= 0.5:
                    num_hits += 1
                    free.remove(target)
        best = max(best, 2 * num_hits / (num_predicted + sum(len(each.objects) for each in pictures)))
    return best


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


@pytest.mark.parametrize("seed", range(20))
def test_f1_equals_a_matching_made_anew_at_every_threshold(seed):
    random = generator("f1", seed)

    def boxes(count):
        corners = random.uniform(0, 30, (count, 2))
        return np.concatenate([corners, corners + random.uniform(15, 30, (count, 2))], axis=1)

    pictures, predictions = [], []
    for _ in range(4):
        pictures.append(picture(*((box, random.choice(["x", "y"])) for box in boxes(random.integers(0, 6)))))
        found = [(box, round(random.random(), 1), random.choice(["x", "y"])) for box in boxes(random.integers(1, 8))]
        predictions.append(prediction(*found))
    assert {class_of(o.description) for p in pictures for o in p.objects} == {"x", "y"}
    assert score(pictures, predictions)["f1"] == pytest.approx(brute_force_f1(pictures, predictions))


def test_constant_boxes_lie_where_the_training_boxes_lie_most():
    train = [picture((A, "x/1")), picture((A, "x/2"), size=(100, 100)), picture((C, "x")), picture((B, "y"))]
    constant, wide = constant_predictions(train, [picture(), picture(size=(200, 100))], num_boxes=4, seed=1)
    order = np.argsort(-constant.scores)
    assert constant.boxes_xyxy[order] == pytest.approx(np.array([B, A, C], dtype=float))
    assert constant.scores[order] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [constant.descriptions[i] for i in order] == ["y", "x", "x"]
    assert wide.boxes_xyxy == pytest.approx(constant.boxes_xyxy * [2, 1, 2, 1])


def test_constant_boxes_are_those_of_their_seed_and_as_many_as_asked():
    random = generator("constant", 0)
    corners = random.uniform(0, 50, (60, 2))
    train = [picture(*((tuple(xy) + tuple(xy + 20), f"class{i % 3}") for i, xy in enumerate(corners)))]
    first, again, other = (constant_predictions(train, [picture()], 15, seed)[0] for seed in (1, 1, 2))
    assert len(first.scores) == 15
    assert (first.boxes_xyxy == again.boxes_xyxy).all()
    assert (first.boxes_xyxy != other.boxes_xyxy).any()


def test_without_training_objects_the_constant_prediction_is_empty():
    constant = constant_predictions([picture()], [picture((A, "x"))], 10, seed=1)
    assert score([picture((A, "x"))], constant)["ap"] == 0.0
