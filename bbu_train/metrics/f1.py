"""F1 of predicted boxes at IoU 0.5, and the matching of predictions with true boxes that it rests on."""

from dataclasses import replace

import numpy as np
from faster_coco_eval import mask
from jaxtyping import Float, Int

from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of

Pairs = list[tuple[Picture, Prediction]]
"""Annotated pictures with their predictions. `objects` are those that are scored, `ignored` all others."""


def best_f1(pairs: Pairs, classes: set[str]) -> tuple[float, float]:
    """Return the maximum of F1 = 2 TP / (predicted + true) over score thresholds, and the threshold.

    Every predicted box counts, whatever its class: one of a class without true objects matches nothing.
    Predictions are matched in order of their scores, so raising the threshold only cuts off the end of the matching.
    One matching therefore serves all thresholds.
    """
    scores, hits = [], []
    for picture, prediction in ((picture, _without_ignored(picture, each)) for picture, each in pairs):
        predicted_classes = np.array([class_of(text) for text in prediction.descriptions], dtype=object)
        true_classes = np.array([class_of(each.description) for each in picture.objects], dtype=object)
        true_boxes = boxes_of(picture)
        is_unknown = ~np.isin(predicted_classes, list(classes))
        scores.append(prediction.scores[is_unknown])
        hits.append(np.zeros(is_unknown.sum(), dtype=bool))
        for name in classes & set(predicted_classes):
            is_predicted = predicted_classes == name
            class_scores = prediction.scores[is_predicted]
            matches = match_boxes(prediction.boxes_xyxy[is_predicted], class_scores, true_boxes[true_classes == name])
            hits.append(matches >= 0)
            scores.append(class_scores)
    if not any(class_hits.any() for class_hits in hits):
        return 0.0, 1.0
    scores, hits = np.concatenate(scores), np.concatenate(hits)
    order = np.argsort(-scores, kind="stable")
    scores, true_positives = scores[order], hits[order].cumsum()
    num_true = sum(len(picture.objects) for picture, _ in pairs)
    f1 = 2 * true_positives / (np.arange(1, len(scores) + 1) + num_true)
    f1[:-1][scores[:-1] == scores[1:]] = 0  # no threshold separates equal scores
    best = int(f1.argmax())
    return float(f1[best]), float(scores[best])


def count_unknown(pairs: Pairs, classes: set[str]) -> int:
    """Return the number of predicted boxes of other classes than `classes`, without predictions of ignored objects."""
    counted = (_without_ignored(picture, prediction) for picture, prediction in pairs)
    return sum(class_of(text) not in classes for prediction in counted for text in prediction.descriptions)


def match_boxes(
    boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], true_boxes: Float[np.ndarray, "m 4"]
) -> Int[np.ndarray, "n"]:
    """Return the index of the true box that each prediction of a picture matches, or -1.

    COCO's rule: in order of score, each prediction takes the free true box with the highest IoU, if it is 0.5 or more.
    """
    matches = np.full(len(boxes), -1)
    if not len(boxes) or not len(true_boxes):
        return matches
    overlaps = mask.iou(_xywh(boxes), _xywh(true_boxes), [0] * len(true_boxes))
    for index in np.argsort(-scores, kind="stable"):
        target = overlaps[index].argmax()
        if overlaps[index, target] >= 0.5:
            matches[index] = target
            overlaps[:, target] = -1
    return matches


def _without_ignored(picture: Picture, prediction: Prediction) -> Prediction:
    """Leave out predictions of ignored objects. As in VOC, a prediction is of the object that it overlaps the most."""
    if not picture.ignored or not len(prediction.scores):
        return prediction
    truth = replace(picture, objects=picture.objects + picture.ignored)
    overlaps = mask.iou(_xywh(prediction.boxes_xyxy), _xywh(boxes_of(truth)), [0] * len(truth.objects))
    predicted_classes = [class_of(text) for text in prediction.descriptions]
    true_classes = [class_of(each.description) for each in truth.objects]
    overlaps[np.array(predicted_classes)[:, None] != np.array(true_classes)] = -1
    is_kept = (overlaps.argmax(axis=1) < len(picture.objects)) | (overlaps.max(axis=1) < 0.5)
    descriptions = tuple(text for text, kept in zip(prediction.descriptions, is_kept, strict=True) if kept)
    return Prediction(prediction.boxes_xyxy[is_kept], prediction.scores[is_kept], descriptions)


def boxes_of(picture: Picture) -> Float[np.ndarray, "n 4"]:
    """Return the true boxes of a picture as (x1, y1, x2, y2) in pixels, without those of ignored objects."""
    return np.array([each.box_xyxy for each in picture.objects], dtype=float).reshape(-1, 4)


def _xywh(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1).astype(float)
