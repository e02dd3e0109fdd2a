"""How good boxes and their descriptions are: COCO average precision and recall, F1, and words.

The class of an object, true or predicted, is the first level of its description. The classes are those of the true
objects; a prediction of any other class counts in the class-agnostic numbers only.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster, mask
from jaxtyping import Float, Int

from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of


def detection_metrics(pictures: Sequence[Picture], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Average precision and F1 of one prediction a picture; pictures that nobody annotated are left out.

    `ap` is the mean over IoU 0.50 to 0.95 and over classes, `ap50` and `ap75` that at one IoU, `ap50/<class>` that of
    one class; `agnostic_ap` and `agnostic_ap50` take all objects as one class. As COCO does, they look at the 100
    highest scores of a picture (and class): of 300 objects in one picture at most 100 can be found.
    `f1` is that of all classes together at IoU 0.5, at the score threshold that is best for it, `f1_threshold`
    (scores from it on count; 1 where no threshold finds anything). It has no limit of 100.
    Without predictions all are 0. Without any true object nothing is defined: no key is there.
    """
    pairs, classes = _scored(pictures, predictions)
    return _summary(pairs, classes, _evaluated(pairs, classes, agnostic=False)) if classes else {}


def full_detection_metrics(pictures: Sequence[Picture], predictions: Sequence[Prediction]) -> dict[str, float]:
    """What `detection_metrics` says, and more of the same predictions.

    `ap_small`, `ap_medium` and `ap_large` are `ap` of true objects below 32 x 32 pixels of the original, up to 96 x 96,
    and above. `recall_1`, `recall_10` and `recall_100` are COCO's average recall, with so many predictions of a
    picture and class. The others look at the true objects that a prediction of any class overlaps by IoU 0.5:
    `matched` is their share, `description/exact` how many of them have the right description, and
    `description/level_<k>` how many have its first k levels right, of those that have k levels.
    What has no object to be measured on has no key.
    """
    pairs, classes = _scored(pictures, predictions)
    if not classes:
        return {}
    evaluation = _evaluated(pairs, classes, agnostic=False)
    return (
        _summary(pairs, classes, evaluation)
        | {name: float(its.mean()) for name, its in _by_area(evaluation) if its.size}
        | {f"recall_{most}": float(evaluation["recall"][:, :, 0, i].mean()) for i, most in enumerate((1, 10, 100))}
        | _descriptions(pairs)
    )


def _scored(
    pictures: Sequence[Picture], predictions: Sequence[Prediction]
) -> tuple[list[tuple[Picture, Prediction]], list[str]]:
    """The annotated pictures with their predictions, and the classes of their objects."""
    pairs = [pair for pair in zip(pictures, predictions, strict=True) if pair[0].objects is not None]
    return pairs, sorted({class_of(each.description) for picture, _ in pairs for each in picture.objects})


def _summary(
    pairs: list[tuple[Picture, Prediction]], classes: list[str], evaluation: dict[str, Any]
) -> dict[str, float]:
    precision = _precision(evaluation)
    agnostic = _precision(_evaluated(pairs, classes, agnostic=True))
    f1, threshold = _best_f1(pairs, set(classes))
    return {
        "ap": float(precision.mean()),
        "ap50": float(precision[0].mean()),
        "ap75": float(precision[5].mean()),
        "agnostic_ap": float(agnostic.mean()),
        "agnostic_ap50": float(agnostic[0].mean()),
        "f1": f1,
        "f1_threshold": threshold,
    } | _per_class(classes, precision[0])


def _per_class(classes: list[str], ap50: Float[np.ndarray, "classes"]) -> dict[str, float]:
    """MLflow refuses some characters in names: they become "_", as often as it takes to keep classes apart."""
    named = {}
    for name, value in zip(classes, ap50, strict=True):
        key = "ap50/" + (re.sub(r"[^\w\- ]", "_", name)[:200] or "_")
        while key in named:
            key += "_"
        named[key] = float(value)
    return named


def _evaluated(pairs: list[tuple[Picture, Prediction]], classes: list[str], agnostic: bool) -> dict[str, Any]:
    """COCO's "precision" by (IoU threshold, 101 recalls, class, area, number of detections), and "recall" by the same
    but for the recalls. Areas are all, small, medium and large. `agnostic`: one class for all."""
    category = {name: 1 if agnostic else number for number, name in enumerate(classes, start=1)}
    truths, found = [], []
    for image, (picture, prediction) in enumerate(pairs, start=1):
        for each in picture.objects:
            truths.append(
                _annotation(image, category[class_of(each.description)], np.array(each.box_xyxy, dtype=float))
            )
        for box, value, text in zip(prediction.boxes_xyxy, prediction.scores, prediction.descriptions, strict=True):
            known = 1 if agnostic else category.get(class_of(text))
            if known:
                found.append(_annotation(image, known, box) | {"score": float(value)})
    for number, annotation in enumerate(truths, start=1):  # an id of 0 would mean "unmatched"
        annotation["id"] = number
    images = [{"id": image, "width": p.width, "height": p.height} for image, (p, _) in enumerate(pairs, start=1)]
    categories = [{"id": number, "name": str(number)} for number in sorted(set(category.values()))]
    truth = COCO({"images": images, "categories": categories, "annotations": truths})
    evaluation = COCOeval_faster(truth, truth.loadRes(found), iouType="bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _precision(evaluation: dict[str, Any]) -> Float[np.ndarray, "thresholds classes"]:
    """Average precision by IoU threshold (0.50, 0.55, ... 0.95) and class: all areas, 100 detections."""
    return evaluation["precision"][:, :, :, 0, -1].mean(axis=1)


def _by_area(evaluation: dict[str, Any]) -> Iterator[tuple[str, Float[np.ndarray, "_"]]]:
    """The precisions of the classes that have objects of each size; COCO marks the others by -1."""
    for area, name in enumerate(("ap_small", "ap_medium", "ap_large"), start=1):
        precision = evaluation["precision"][:, :, :, area, -1]
        yield name, precision[precision > -1]


def _annotation(image: int, category: int, box_xyxy: Float[np.ndarray, "4"]) -> dict:
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    width, height = x2 - x1, y2 - y1
    box = [x1, y1, width, height]
    return {"image_id": image, "category_id": category, "bbox": box, "area": width * height, "iscrowd": 0}


def _best_f1(pairs: list[tuple[Picture, Prediction]], classes: set[str]) -> tuple[float, float]:
    """The best F1 = 2 TP / (predicted + true) over score thresholds, and the threshold.

    The matching of the scores above a threshold is the beginning of the matching of all: one matching serves them all.
    """
    scores, hits = [], []
    for picture, prediction in pairs:
        predicted_classes = np.array([class_of(text) for text in prediction.descriptions], dtype=object)
        true_classes = np.array([class_of(each.description) for each in picture.objects], dtype=object)
        true_boxes = _true_boxes(picture)
        for name in classes & set(predicted_classes):
            chosen = predicted_classes == name
            its_boxes = true_boxes[true_classes == name]
            hits.append(_matches(prediction.boxes_xyxy[chosen], prediction.scores[chosen], its_boxes) >= 0)
            scores.append(prediction.scores[chosen])
    if not any(found.any() for found in hits):
        return 0.0, 1.0
    scores, hits = np.concatenate(scores), np.concatenate(hits)
    order = np.argsort(-scores, kind="stable")
    scores, true_positives = scores[order], hits[order].cumsum()
    num_true = sum(len(picture.objects) for picture, _ in pairs)
    f1 = 2 * true_positives / (np.arange(1, len(scores) + 1) + num_true)
    f1[:-1][scores[:-1] == scores[1:]] = 0  # a threshold cannot part equal scores
    best = int(f1.argmax())
    return float(f1[best]), float(scores[best])


def _matches(
    boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], true_boxes: Float[np.ndarray, "m 4"]
) -> Int[np.ndarray, "n"]:
    """Which object each prediction of one picture finds, by COCO's rule; -1: none.

    In the order of their scores each takes the free object that it overlaps most, if that is by IoU 0.5 or more.
    """
    found = np.full(len(boxes), -1)
    if not len(boxes) or not len(true_boxes):
        return found
    overlaps = mask.iou(_xywh(boxes), _xywh(true_boxes), [0] * len(true_boxes))
    for index in np.argsort(-scores, kind="stable"):
        target = overlaps[index].argmax()
        if overlaps[index, target] >= 0.5:
            found[index] = target
            overlaps[:, target] = -1
    return found


def _descriptions(pairs: list[tuple[Picture, Prediction]]) -> dict[str, float]:
    """How many objects are matched by a prediction of any class, and what is right in the descriptions of those."""
    said: list[tuple[list[str], list[str]]] = []  # levels of the true and of the predicted description
    for picture, prediction in pairs:
        matches = _matches(prediction.boxes_xyxy, prediction.scores, _true_boxes(picture))
        for index in np.flatnonzero(matches >= 0):
            true = picture.objects[matches[index]].description
            said.append((true.split("/"), prediction.descriptions[index].split("/")))
    metrics = {"matched": len(said) / sum(len(picture.objects) for picture, _ in pairs)}
    if said:
        metrics["description/exact"] = float(np.mean([true == found for true, found in said]))
    for level in range(1, max((len(true) for true, _ in said), default=0) + 1):
        right = [true[:level] == found[:level] for true, found in said if len(true) >= level]
        metrics[f"description/level_{level}"] = float(np.mean(right))
    return metrics


def _true_boxes(picture: Picture) -> Float[np.ndarray, "n 4"]:
    return np.array([each.box_xyxy for each in picture.objects], dtype=float).reshape(-1, 4)


def _xywh(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1).astype(float)
