"""Detection metrics: COCO average precision (AP) and average recall (AR), F1, and accuracy of descriptions.

The class of an object, true or predicted, is the first level of its description. The classes are those of the true
objects. A predicted box of any other class is a false positive for F1 and for the class-agnostic metrics; AP and AR by
class, as COCO defines them, do not see it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float

from bbu_train.metrics.f1 import Pairs, best_f1, boxes_of, count_unknown, match_boxes
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of

AREA_OF_IGNORED = 1e20  # square pixels: outside all of COCO's ranges, so that COCO ignores such a true box


def detection_metrics(pictures: Sequence[Picture], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return AP and F1 for one prediction per picture. Pictures without annotation are left out.

    ap                          mean over IoU 0.50, 0.55, ... 0.95 and over classes
    ap50, ap75                  AP at IoU 0.50 and at IoU 0.75
    ap50/<class>                AP at IoU 0.50 of one class
    agnostic_ap, agnostic_ap50  the same with all objects as one class
    f1                          F1 over all classes at IoU 0.5, at the score threshold that maximises it
    f1_threshold                that threshold: predictions with this score or more count; 1 if none matches
    unknown_class_boxes         number of predicted boxes, of any score, whose class no true object has

    As in COCO, AP uses the 100 highest-scored predictions per picture and class. So in a picture at most 100 objects of
    a class can be matched, and for the agnostic metrics at most 100 objects in all. F1 has no such limit. Without
    predictions everything is 0, but for `f1_threshold`. Without true objects nothing is defined, and the result is
    empty. Boxes are scored as they are: see `clip_to_picture`. As in Pascal VOC, a difficult object is not to be found,
    and a prediction of it is neither right nor wrong.
    """
    pairs, classes = _annotated_pairs(pictures, predictions)
    return _summarize(pairs, classes, _evaluate_coco(pairs, classes, is_agnostic=False)) if classes else {}


def full_detection_metrics(pictures: Sequence[Picture], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return `detection_metrics`, AP by object size, AR, and the accuracy of descriptions.

    ap_small, ap_medium, ap_large     `ap` of true objects below 32 x 32 pixels of the original, up to 96 x 96, above
    recall_1, recall_10, recall_100   COCO's AR with at most this many predictions per picture and class
    matched                           share of true objects with a prediction of any class at IoU 0.5 or more
    description/exact                 share of matched objects with the right description
    description/level_<k>             share of matched objects with k levels or more whose first k levels are right

    A metric that has no object to be measured on is left out.
    """
    pairs, classes = _annotated_pairs(pictures, predictions)
    if not classes:
        return {}
    evaluation = _evaluate_coco(pairs, classes, is_agnostic=False)
    recalls = {
        f"recall_{max_detections}": float(evaluation["recall"][:, :, 0, i].mean())
        for i, max_detections in enumerate((1, 10, 100))
    }
    return (
        _summarize(pairs, classes, evaluation)
        | {name: float(precision.mean()) for name, precision in _precision_by_size(evaluation) if precision.size}
        | recalls
        | _description_metrics(pairs)
    )


def _annotated_pairs(pictures: Sequence[Picture], predictions: Sequence[Prediction]) -> tuple[Pairs, list[str]]:
    """Return the annotated pictures with their predictions, and the classes of their scored objects."""
    pairs = [
        (_ignore_difficult(picture), prediction)
        for picture, prediction in zip(pictures, predictions, strict=True)
        if picture.objects is not None
    ]
    return pairs, sorted({class_of(each.description) for picture, _ in pairs for each in picture.objects})


def _ignore_difficult(picture: Picture) -> Picture:
    difficult = tuple(each for each in picture.objects if each.is_difficult)
    scored = tuple(each for each in picture.objects if not each.is_difficult)
    return replace(picture, objects=scored, ignored=picture.ignored + difficult) if difficult else picture


def _summarize(pairs: Pairs, classes: list[str], evaluation: dict[str, Any]) -> dict[str, float]:
    precision = _average_precision(evaluation)
    agnostic = _average_precision(_evaluate_coco(pairs, classes, is_agnostic=True))
    f1, threshold = best_f1(pairs, set(classes))
    return {
        "ap": float(precision.mean()),
        "ap50": float(precision[0].mean()),
        "ap75": float(precision[5].mean()),
        "agnostic_ap": float(agnostic.mean()),
        "agnostic_ap50": float(agnostic[0].mean()),
        "f1": f1,
        "f1_threshold": threshold,
        "unknown_class_boxes": float(count_unknown(pairs, set(classes))),
    } | _ap50_by_class(classes, precision[0])


def _ap50_by_class(classes: list[str], ap50: Float[np.ndarray, "classes"]) -> dict[str, float]:
    """Return `ap50/<class>` for each class.

    MLflow rejects some characters in metric names. They become "_"; more "_" at the end keep names distinct.
    """
    named = {}
    for name, value in zip(classes, ap50, strict=True):
        key = "ap50/" + (re.sub(r"[^\w\- ]", "_", name)[:200] or "_")
        while key in named:
            key += "_"
        named[key] = float(value)
    return named


def _evaluate_coco(pairs: Pairs, classes: list[str], is_agnostic: bool) -> dict[str, Any]:
    """Run COCO's evaluation; with `is_agnostic` all classes are one.

    "precision" has the axes (IoU threshold, 101 recalls, class, area, maximum number of detections), and "recall" the
    same without the recalls. The areas are all, small, medium and large.
    """
    category = {name: 1 if is_agnostic else number for number, name in enumerate(classes, start=1)}
    truths, detections = [], []
    for image, (picture, prediction) in enumerate(pairs, start=1):
        for each in picture.objects:
            box = np.array(each.box_xyxy, dtype=float)
            truths.append(_annotation(image, category[class_of(each.description)], box))
        for each in picture.ignored:
            if number := 1 if is_agnostic else category.get(class_of(each.description)):
                ignored = _annotation(image, number, np.array(each.box_xyxy)) | {"area": AREA_OF_IGNORED}
                # A true box takes one prediction alone, but all predictions of this object are to be ignored.
                truths += [dict(ignored) for _ in prediction.scores]
        for box, score, text in zip(prediction.boxes_xyxy, prediction.scores, prediction.descriptions, strict=True):
            number = 1 if is_agnostic else category.get(class_of(text))
            if number:
                detections.append(_annotation(image, number, box) | {"score": float(score)})
    for number, annotation in enumerate(truths, start=1):  # an id of 0 would mean "unmatched"
        annotation["id"] = number
    images = [{"id": image, "width": p.width, "height": p.height} for image, (p, _) in enumerate(pairs, start=1)]
    categories = [{"id": number, "name": str(number)} for number in sorted(set(category.values()))]
    truth = COCO({"images": images, "categories": categories, "annotations": truths})
    evaluation = COCOeval_faster(truth, truth.loadRes(detections), iouType="bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _average_precision(evaluation: dict[str, Any]) -> Float[np.ndarray, "thresholds classes"]:
    """Return AP by IoU threshold (0.50, 0.55, ... 0.95) and class, for all areas and 100 detections."""
    return evaluation["precision"][:, :, :, 0, -1].mean(axis=1)


def _precision_by_size(evaluation: dict[str, Any]) -> Iterator[tuple[str, Float[np.ndarray, "_"]]]:
    """Yield the precisions for each object size, without classes that have no object of it: COCO marks them by -1."""
    for area, name in enumerate(("ap_small", "ap_medium", "ap_large"), start=1):
        precision = evaluation["precision"][:, :, :, area, -1]
        yield name, precision[precision > -1]


def _annotation(image: int, category: int, box_xyxy: Float[np.ndarray, "4"]) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    width, height = x2 - x1, y2 - y1
    box = [x1, y1, width, height]
    return {"image_id": image, "category_id": category, "bbox": box, "area": width * height, "iscrowd": 0}


def _description_metrics(pairs: Pairs) -> dict[str, float]:
    """Return the share of objects that a prediction of any class matches, and the accuracy of their descriptions."""
    descriptions: list[tuple[list[str], list[str]]] = []  # levels of the true and of the predicted description
    for picture, prediction in pairs:
        matches = match_boxes(prediction.boxes_xyxy, prediction.scores, boxes_of(picture))
        for index in np.flatnonzero(matches >= 0):
            true = picture.objects[matches[index]].description
            descriptions.append((true.split("/"), prediction.descriptions[index].split("/")))
    metrics = {"matched": len(descriptions) / sum(len(picture.objects) for picture, _ in pairs)}
    if descriptions:
        metrics["description/exact"] = float(np.mean([true == predicted for true, predicted in descriptions]))
    for level in range(1, max((len(true) for true, _ in descriptions), default=0) + 1):
        is_right = [true[:level] == predicted[:level] for true, predicted in descriptions if len(true) >= level]
        metrics[f"description/level_{level}"] = float(np.mean(is_right))
    return metrics
