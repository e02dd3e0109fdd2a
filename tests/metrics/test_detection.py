from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.utils.validation import _validate_metric_name
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scored import A, B, C, iou, perfect, picture, prediction

from bbu_train.metrics.detection import detection_metrics, full_detection_metrics
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object, Picture, class_of

PICTURES = [picture((A, "螺丝/正确"), (B, "bbu/huawei")), picture(), picture((C, "螺丝"))]


def test_the_class_is_the_first_level_of_the_description():
    assert [class_of(text) for text in ("bbu/huawei/new", "bbu", "")] == ["bbu", "bbu", ""]


def test_perfect_predictions_score_1():
    metrics = detection_metrics(PICTURES, [perfect(each) for each in PICTURES])
    assert (metrics.pop("f1_threshold"), metrics.pop("unknown_class_boxes")) == (0.9, 0)
    assert metrics == pytest.approx(dict.fromkeys(metrics, 1.0))
    assert {"ap", "ap50", "ap75", "ap50/bbu", "ap50/螺丝", "agnostic_ap", "agnostic_ap50", "f1"} == set(metrics)


def test_boxes_in_the_wrong_place_and_missing_boxes_score_0():
    for detections in ([((70, 70, 80, 80), 0.9, "bbu")], []):
        metrics = detection_metrics(PICTURES, [prediction(*detections)] * 3)
        assert metrics.pop("f1_threshold") == 1.0
        assert set(metrics.values()) == {0.0}


def test_a_mixed_case_agrees_with_a_calculation_by_hand():
    # One class, two true objects. Detections by score: exact (0.9), a false positive (0.8), IoU 0.62 (0.7).
    # At the 101 recall points, precision is 1 up to recall 0.50, then 2/3 where IoU 0.62 is enough (0.50, 0.55, 0.60).
    pictures = [picture((A, "x")), picture((A, "x"))]
    predictions = [prediction((A, 0.9, "x"), (C, 0.8, "x")), prediction(((0, 0, 10, 6.2), 0.7, "x"))]
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    metrics = detection_metrics(pictures, predictions)
    assert metrics["ap50"] == pytest.approx(loose)
    assert metrics["ap75"] == pytest.approx(strict)
    assert metrics["ap"] == pytest.approx((3 * loose + 7 * strict) / 10)
    assert (metrics["f1"], metrics["f1_threshold"]) == (pytest.approx(0.8), 0.7)  # 2 hits, 3 predicted, 2 true


def test_average_precision_is_the_mean_over_classes_not_over_objects():
    pictures = [picture((A, "x"), (B, "x"), (C, "y"))]
    metrics = detection_metrics(pictures, [prediction((A, 0.9, "x"), (B, 0.9, "x"))])
    assert (metrics["ap50/x"], metrics["ap50/y"], metrics["ap50"]) == pytest.approx((1, 0, 0.5))


def test_ap_by_class_is_cocos_and_its_blind_spot_is_a_number_beside_it():
    pictures = [picture((A, "x"), (B, "y"))]
    correct = [(A, 0.9, "x"), (B, 0.8, "y")]
    with_unknown = detection_metrics(pictures, [prediction(*correct, (C, 0.95, "screw"), (A, 0.01, ""))])
    assert with_unknown["ap"] == 1.0
    assert with_unknown["unknown_class_boxes"] == 2
    assert with_unknown["agnostic_ap50"] == pytest.approx(2 / 3)
    swapped = detection_metrics(pictures, [prediction((A, 0.9, "y"), (B, 0.8, "x"))])
    assert (swapped["ap50"], swapped["agnostic_ap50"], swapped["unknown_class_boxes"]) == (0.0, 1.0, 0)


def test_without_true_objects_nothing_is_defined():
    assert detection_metrics([picture()], [prediction((A, 0.9, "x"))]) == {}
    assert full_detection_metrics([picture()], [prediction((A, 0.9, "x"))]) == {}


def test_pictures_without_annotation_are_left_out():
    unannotated = Picture(Path("b.png"), 100, 100, None)
    predicted = prediction((A, 0.9, "x"))
    assert detection_metrics([picture((A, "x")), unannotated], [predicted, predicted])["agnostic_ap50"] == 1.0


def test_of_300_objects_in_a_picture_ap_and_ar_count_100_and_f1_and_descriptions_all():
    boxes = [(x, y, x + 4, y + 4) for x in range(0, 100, 5) for y in range(0, 75, 5)]
    crowded = picture(*((box, "x/y") for box in boxes))
    metrics = full_detection_metrics([crowded], [perfect(crowded)])
    assert metrics["ap"] == pytest.approx(34 / 101)  # recall points 0.00 to 0.33
    assert [metrics[name] for name in ("f1", "matched", "description/exact")] == [1.0, 1.0, 1.0]
    recalls = [metrics[f"recall_{max_detections}"] for max_detections in (1, 10, 100)]
    assert recalls == pytest.approx([1 / 300, 10 / 300, 100 / 300])


def test_class_names_become_distinct_metric_names_that_mlflow_accepts():
    names = ["螺丝 (M6)", "a+b", "a*b", "", "..", "x" * 300]
    pictures = [picture(*((A, name) for name in names))]
    metrics = detection_metrics(pictures, [perfect(pictures[0])])
    assert sum(name.startswith("ap50/") for name in metrics) == len(names)
    for name in metrics:
        _validate_metric_name("eval/" + name)
    assert max(map(len, metrics)) <= 245


def random_detections(seed):
    """Pictures of three classes with boxes of all sizes; 70% are predicted, shifted, among 60 false positives each."""
    random = generator("coco", seed)

    def box():
        width, height = np.exp(random.uniform(np.log(4), np.log(300), 2))
        x, y = random.uniform(0, 640 - width), random.uniform(0, 480 - height)
        return np.array([x, y, x + width, y + height])

    def description():
        return str(random.choice(["x/1", "y/2", "螺丝"]))

    pictures, predictions = [], []
    for number in range(12):
        truths = [(box(), description()) for _ in range(0 if number == 0 else random.integers(1, 15))]
        shifted = [(true + random.normal(0, 0.1 * (true[2] - true[0]), 4), text) for true, text in truths]
        detections = [each for each in shifted if random.random() < 0.7] + [(box(), description()) for _ in range(60)]
        pictures.append(picture(*truths, size=(640, 480)))
        predictions.append(
            prediction(*((np.sort(each.reshape(2, 2), 0).ravel(), random.random(), text) for each, text in detections))
        )
    return pictures, predictions


def pycocotools_metrics(pictures, predictions):
    """The twelve numbers that COCO's own evaluation prints."""
    classes = sorted({class_of(each.description) for picture in pictures for each in picture.objects})

    def annotation(image, box, text):
        x, y, width, height = *map(float, box[:2]), float(box[2] - box[0]), float(box[3] - box[1])
        category = classes.index(class_of(text)) + 1
        return {"image_id": image, "category_id": category, "bbox": [x, y, width, height], "area": width * height}

    truth, detections = COCO(), []
    truths = [
        annotation(i, each.box_xyxy, class_of(each.description))
        for i, picture in enumerate(pictures, 1)
        for each in picture.objects
    ]
    truth.dataset = {
        "images": [{"id": i} for i in range(1, len(pictures) + 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        "annotations": [each | {"id": i, "iscrowd": 0} for i, each in enumerate(truths, 1)],
    }
    truth.createIndex()
    for image, each in enumerate(predictions, 1):
        for box, score, text in zip(each.boxes_xyxy, each.scores, each.descriptions, strict=True):
            detections.append(annotation(image, box, text) | {"score": float(score)})
    evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


COCO_NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "recall_1", "recall_10", "recall_100"]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_and_recall_equal_those_of_pycocotools(seed):
    pictures, predictions = random_detections(seed)
    metrics = full_detection_metrics(pictures, predictions)
    expected = pycocotools_metrics(pictures, predictions)[:9]
    assert [metrics[name] for name in COCO_NAMES] == pytest.approx(expected, abs=1e-9)
    assert len(set(expected)) == 9


def voc_matching(pictures, predictions, name):
    """Pascal VOC's rule for one class: whether each counted detection is right, best first, and the number of objects.

    After VOCevaldet.m of the development kit: a detection belongs to the true box of the highest overlap.
    """
    rights, taken = [], set()
    detections = [
        (score, number, box)
        for number, each in enumerate(predictions)
        for box, score, text in zip(each.boxes_xyxy, each.scores, each.descriptions, strict=True)
        if class_of(text) == name
    ]
    truths = [
        [each for each in picture.objects if class_of(each.description) == name] + list(picture.ignored)
        for picture in pictures
    ]
    for _, number, box in sorted(detections, key=lambda detection: -detection[0]):
        overlaps = [iou(box, each.box_xyxy) for each in truths[number]]
        best = int(np.argmax(overlaps)) if overlaps else None
        if best is None or overlaps[best] < 0.5:
            rights.append(False)
        elif not truths[number][best].is_difficult:
            rights.append((number, best) not in taken)
            taken.add((number, best))
    return rights, sum(not each.is_difficult for objects in truths for each in objects)


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_difficult_objects_count_as_in_pascal_voc(seed, is_trained):
    random = generator("difficult", seed)
    pictures, predictions = [], []
    for _ in range(6):
        corners = [(x, y) for x in range(0, 90, 30) for y in range(0, 90, 30) if random.random() < 0.6]
        boxes = [np.array([x + 4, y + 4, x + 24, y + 24], dtype=float) for x, y in corners]
        objects = [Object(tuple(box), "x/1", bool(random.random() < 0.4)) for box in boxes]
        truth = [each for each in objects if is_trained or not each.is_difficult]
        ignored = [each for each in objects if each not in truth]
        pictures.append(Picture(Path("a.png"), 100, 100, tuple(truth), ignored=tuple(ignored)))
        near = [box + random.normal(0, 2, 4) for box in boxes for _ in range(random.integers(0, 4))]
        far = [np.array([x, x, x + 5, x + 5.0]) for x in random.uniform(0, 90, 5)]
        predictions.append(prediction(*((box, random.random(), "x/2") for box in near + far)))
    rights, num_true = voc_matching(pictures, predictions, "x")
    metrics = detection_metrics(pictures, predictions)
    hits = np.cumsum(rights)
    ranks = np.arange(1, len(rights) + 1)
    at_least = np.maximum.accumulate((hits / ranks)[::-1])[::-1]
    reached = [np.flatnonzero(hits / num_true >= recall) for recall in np.linspace(0, 1, 101)]
    assert metrics["ap50"] == pytest.approx(np.mean([at_least[each[0]] if len(each) else 0 for each in reached]))
    assert metrics["f1"] == pytest.approx((2 * hits / (ranks + num_true)).max())
    assert len(rights) < sum(len(each.scores) for each in predictions)


def test_a_prediction_of_a_difficult_object_changes_nothing():
    truth = picture((A, "x"), (B, "y"))
    found = (A, 0.5, "x")
    difficult = [Object(tuple(map(float, box)), text, is_difficult=True) for box, text in ((C, "x"), (C, "z"))]
    with_difficult = replace(truth, objects=truth.objects + tuple(difficult))
    on_difficult = [(C, 0.9, "x"), (C, 0.8, "x"), (C, 0.7, "z")]
    expected = full_detection_metrics([truth], [prediction(found)])
    metrics = full_detection_metrics([with_difficult], [prediction(found, *on_difficult)])
    assert metrics.pop("recall_1") < expected.pop("recall_1")  # COCO takes the best predictions before it ignores any
    assert metrics == expected
    assert detection_metrics([replace(truth, objects=tuple(difficult))], [prediction(found)]) == {}


def test_the_full_metrics_begin_with_the_short_ones():
    pictures, predictions = random_detections(0)
    short, full = detection_metrics(pictures, predictions), full_detection_metrics(pictures, predictions)
    assert list(full.items())[: len(short)] == list(short.items())


def test_descriptions_are_compared_level_by_level_for_matched_objects_of_any_class():
    truths = [(A, "bbu/zte/alarm"), (B, "bbu/huawei"), (C, "screw"), ((80, 80, 90, 90), "never/matched")]
    detections = [
        (A, 0.9, "bbu/zte/running"),
        (B, 0.8, "label/huawei"),
        (C, 0.7, "screw"),
        ((0, 80, 9, 90), 0.6, "screw"),
    ]
    metrics = full_detection_metrics([picture(*truths)], [prediction(*detections)])
    assert metrics["matched"] == 3 / 4
    assert metrics["description/exact"] == pytest.approx(1 / 3)
    assert metrics["description/level_1"] == pytest.approx(2 / 3)
    assert metrics["description/level_2"] == pytest.approx(1 / 2)
    assert metrics["description/level_3"] == 0.0
    assert "description/level_4" not in metrics


def test_a_metric_without_an_object_to_measure_it_on_is_left_out():
    metrics = full_detection_metrics([picture((A, "x"))], [prediction()])
    assert {"ap_medium", "ap_large", "description/exact", "description/level_1"} & set(metrics) == set()
    assert [metrics[name] for name in ("ap", "ap_small", "recall_100", "matched", "f1")] == [0.0] * 5
