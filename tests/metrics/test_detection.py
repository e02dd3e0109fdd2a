from pathlib import Path

import numpy as np
import pytest
from mlflow.utils.validation import _validate_metric_name
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scored import A, B, C, perfect, picture, prediction

from bbu_train.metrics.detection import detection_metrics, full_detection_metrics
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Picture, class_of

PICTURES = [picture((A, "螺丝/正确"), (B, "bbu/huawei")), picture(), picture((C, "螺丝"))]


def test_the_class_is_the_first_level_of_the_description():
    assert [class_of(text) for text in ("bbu/huawei/new", "bbu", "")] == ["bbu", "bbu", ""]


def test_perfect_predictions_score_1():
    result = detection_metrics(PICTURES, [perfect(each) for each in PICTURES])
    assert result.pop("f1_threshold") == 0.9
    assert result == pytest.approx(dict.fromkeys(result, 1.0))
    assert {"ap", "ap50", "ap75", "ap50/bbu", "ap50/螺丝", "agnostic_ap", "agnostic_ap50", "f1"} == set(result)


def test_boxes_in_the_wrong_place_and_no_boxes_at_all_score_0():
    for found in ([((70, 70, 80, 80), 0.9, "bbu")], []):
        result = detection_metrics(PICTURES, [prediction(*found)] * 3)
        assert result.pop("f1_threshold") == 1.0
        assert set(result.values()) == {0.0}


def test_a_mixed_case_worked_out_by_hand():
    # One class, two true objects. Found by score: exact (0.9), nothing there (0.8), IoU 0.62 (0.7).
    # The 101 recall points see precision 1 up to recall 0.50, then 2/3 where IoU 0.62 is enough (0.50, 0.55, 0.60).
    pictures = [picture((A, "x")), picture((A, "x"))]
    predictions = [prediction((A, 0.9, "x"), (C, 0.8, "x")), prediction(((0, 0, 10, 6.2), 0.7, "x"))]
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    result = detection_metrics(pictures, predictions)
    assert result["ap50"] == pytest.approx(loose)
    assert result["ap75"] == pytest.approx(strict)
    assert result["ap"] == pytest.approx((3 * loose + 7 * strict) / 10)
    assert (result["f1"], result["f1_threshold"]) == (pytest.approx(0.8), 0.7)  # 2 hits, 3 predicted, 2 true


def test_average_precision_is_the_mean_over_classes_not_over_objects():
    pictures = [picture((A, "x"), (B, "x"), (C, "y"))]
    result = detection_metrics(pictures, [prediction((A, 0.9, "x"), (B, 0.9, "x"))])
    assert (result["ap50/x"], result["ap50/y"], result["ap50"]) == pytest.approx((1, 0, 0.5))


def test_a_prediction_of_another_class_counts_in_the_agnostic_numbers_only():
    pictures = [picture((A, "x"), (B, "y"))]
    found = [(A, 0.9, "x"), (B, 0.8, "y")]
    with_unknown = detection_metrics(pictures, [prediction(*found, (C, 0.95, "screw"))])
    assert with_unknown["ap"] == with_unknown["f1"] == 1.0
    assert with_unknown["agnostic_ap50"] == pytest.approx(2 / 3)
    swapped = detection_metrics(pictures, [prediction((A, 0.9, "y"), (B, 0.8, "x"))])
    assert (swapped["ap50"], swapped["agnostic_ap50"]) == (0.0, 1.0)


def test_without_any_true_object_nothing_is_defined():
    assert detection_metrics([picture()], [prediction((A, 0.9, "x"))]) == {}


def test_pictures_that_nobody_annotated_are_left_out():
    unknown = Picture(Path("b.png"), 100, 100, None)
    found = prediction((A, 0.9, "x"))
    assert detection_metrics([picture((A, "x")), unknown], [found, found])["agnostic_ap50"] == 1.0


def test_of_300_objects_in_a_picture_cocos_100_count():
    boxes = [(x, y, x + 4, y + 4) for x in range(0, 100, 5) for y in range(0, 75, 5)]
    crowded = picture(*((box, "x") for box in boxes))
    result = detection_metrics([crowded], [perfect(crowded)])
    assert result["ap"] == pytest.approx(34 / 101)  # recall points 0.00 to 0.33
    assert result["f1"] == 1.0


def test_class_names_become_metric_names_that_mlflow_takes_and_stay_apart():
    names = ["螺丝 (M6)", "a+b", "a*b", "", "..", "x" * 300]
    pictures = [picture(*((A, name) for name in names))]
    result = detection_metrics(pictures, [perfect(pictures[0])])
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
    assert detection_metrics(pictures, predictions)["f1"] == pytest.approx(brute_force_f1(pictures, predictions))


def random_detections(seed):
    """Pictures of three classes with boxes of all sizes, some of them found, shifted, among many that are nothing."""
    random = generator("coco", seed)

    def box():
        width, height = np.exp(random.uniform(np.log(4), np.log(300), 2))
        x, y = random.uniform(0, 640 - width), random.uniform(0, 480 - height)
        return np.array([x, y, x + width, y + height])

    def named():
        return str(random.choice(["x/1", "y/2", "螺丝"]))

    pictures, predictions = [], []
    for number in range(12):
        truths = [(box(), named()) for _ in range(0 if number == 0 else random.integers(1, 15))]
        shifted = [(its + random.normal(0, 0.1 * (its[2] - its[0]), 4), name) for its, name in truths]
        found = [each for each in shifted if random.random() < 0.7] + [(box(), named()) for _ in range(60)]
        pictures.append(picture(*truths, size=(640, 480)))
        predictions.append(
            prediction(*((np.sort(its.reshape(2, 2), 0).ravel(), random.random(), n) for its, n in found))
        )
    return pictures, predictions


def by_pycocotools(pictures, predictions):
    """The twelve numbers that COCO's own evaluation prints."""
    names = sorted({class_of(each.description) for one in pictures for each in one.objects})

    def row(image, box, text):
        x, y, width, height = *map(float, box[:2]), float(box[2] - box[0]), float(box[3] - box[1])
        category = names.index(class_of(text)) + 1
        return {"image_id": image, "category_id": category, "bbox": [x, y, width, height], "area": width * height}

    truth, found = COCO(), []
    truths = [
        row(i, each.box_xyxy, class_of(each.description)) for i, p in enumerate(pictures, 1) for each in p.objects
    ]
    truth.dataset = {
        "images": [{"id": i} for i in range(1, len(pictures) + 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [each | {"id": i, "iscrowd": 0} for i, each in enumerate(truths, 1)],
    }
    truth.createIndex()
    for image, its in enumerate(predictions, 1):
        for box, value, text in zip(its.boxes_xyxy, its.scores, its.descriptions, strict=True):
            found.append(row(image, box, text) | {"score": float(value)})
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


COCO_NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "recall_1", "recall_10", "recall_100"]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_and_recall_are_those_of_pycocotools(seed):
    pictures, predictions = random_detections(seed)
    result = full_detection_metrics(pictures, predictions)
    expected = by_pycocotools(pictures, predictions)[:9]
    assert [result[name] for name in COCO_NAMES] == pytest.approx(expected, abs=1e-9)
    assert len(set(expected)) == 9


def test_the_full_score_begins_with_the_short_one():
    pictures, predictions = random_detections(0)
    short, full = detection_metrics(pictures, predictions), full_detection_metrics(pictures, predictions)
    assert list(full.items())[: len(short)] == list(short.items())


def test_descriptions_are_compared_level_by_level_over_the_objects_that_are_found_whatever_their_class():
    truths = [(A, "bbu/zte/alarm"), (B, "bbu/huawei"), (C, "screw"), ((80, 80, 90, 90), "never/found")]
    said = [(A, 0.9, "bbu/zte/running"), (B, 0.8, "label/huawei"), (C, 0.7, "screw"), ((0, 80, 9, 90), 0.6, "screw")]
    result = full_detection_metrics([picture(*truths)], [prediction(*said)])
    assert result["matched"] == 3 / 4
    assert result["description/exact"] == pytest.approx(1 / 3)
    assert result["description/level_1"] == pytest.approx(2 / 3)
    assert result["description/level_2"] == pytest.approx(1 / 2)
    assert result["description/level_3"] == 0.0
    assert "description/level_4" not in result


def test_what_has_no_object_to_be_measured_on_is_left_out():
    result = full_detection_metrics([picture((A, "x"))], [prediction()])
    assert {"ap_medium", "ap_large", "description/exact", "description/level_1"} & set(result) == set()
    assert [result[name] for name in ("ap", "ap_small", "recall_100", "matched", "f1")] == [0.0] * 5
    assert full_detection_metrics([picture()], [prediction((A, 0.9, "x"))]) == {}


def test_of_300_objects_all_are_described_and_cocos_100_recalled():
    boxes = [(x, y, x + 4, y + 4) for x in range(0, 100, 5) for y in range(0, 75, 5)]
    crowded = picture(*((box, "x/y") for box in boxes))
    result = full_detection_metrics([crowded], [perfect(crowded)])
    assert (result["matched"], result["description/exact"]) == (1.0, 1.0)
    assert [result[f"recall_{most}"] for most in (1, 10, 100)] == pytest.approx([1 / 300, 10 / 300, 100 / 300])
