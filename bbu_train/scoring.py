"""How good boxes are: COCO average precision, F1, and the score of a predictor that never looks.

The class of an object, true or predicted, is the first level of its description. The classes are those of the true
objects; a prediction of any other class counts in the class-agnostic numbers only.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster, mask
from jaxtyping import Bool, Float
from scipy.cluster.vq import kmeans, vq

from bbu_train.seeds import generator
from bbu_train.types import Picture


@dataclass(frozen=True)
class Prediction:
    """What was found in one picture: boxes in pixels of the upright original, a score and a description for each."""

    boxes_xyxy: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    descriptions: tuple[str, ...]


def class_of(description: str) -> str:
    """The first level of "type/property/extra"."""
    return description.split("/", 1)[0]


def score(pictures: Sequence[Picture], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Average precision and F1 of one prediction a picture; pictures that nobody annotated are left out.

    `ap` is the mean over IoU 0.50 to 0.95 and over classes, `ap50` and `ap75` that at one IoU, `ap50/<class>` that of
    one class; `agnostic_ap` and `agnostic_ap50` take all objects as one class. As COCO does, they look at the 100
    highest scores of a picture (and class): of 300 objects in one picture at most 100 can be found.
    `f1` is that of all classes together at IoU 0.5, at the score threshold that is best for it, `f1_threshold`
    (scores from it on count; 1 where no threshold finds anything). It has no limit of 100.
    Without predictions all are 0. Without any true object nothing is defined: no key is there.
    """
    pairs = [pair for pair in zip(pictures, predictions, strict=True) if pair[0].objects is not None]
    classes = sorted({class_of(each.description) for picture, _ in pairs for each in picture.objects})
    if not classes:
        return {}
    precision = _precision(pairs, classes, agnostic=False)
    agnostic = _precision(pairs, classes, agnostic=True)
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


def _precision(
    pairs: list[tuple[Picture, Prediction]], classes: list[str], agnostic: bool
) -> Float[np.ndarray, "thresholds classes"]:
    """Average precision by IoU threshold (0.50, 0.55, ... 0.95) and class; `agnostic`: one class for all."""
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
    # (IoU thresholds, 101 recalls, classes, areas, numbers of detections): all areas, 100 detections
    return evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=1)


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
        true_boxes = np.array([each.box_xyxy for each in picture.objects], dtype=float).reshape(-1, 4)
        for name in classes & set(predicted_classes):
            chosen = predicted_classes == name
            hits.append(
                _hits(prediction.boxes_xyxy[chosen], prediction.scores[chosen], true_boxes[true_classes == name])
            )
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


def _hits(
    boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], true_boxes: Float[np.ndarray, "m 4"]
) -> Bool[np.ndarray, "n"]:
    """Which predictions of one picture and class find an object, by COCO's rule.

    In the order of their scores each takes the free object that it overlaps most, if that is by IoU 0.5 or more.
    """
    hit = np.zeros(len(boxes), dtype=bool)
    if not len(boxes) or not len(true_boxes):
        return hit
    overlaps = mask.iou(_xywh(boxes), _xywh(true_boxes), [0] * len(true_boxes))
    for index in np.argsort(-scores, kind="stable"):
        target = overlaps[index].argmax()
        if overlaps[index, target] >= 0.5:
            hit[index] = True
            overlaps[:, target] = -1
    return hit


def _xywh(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1).astype(float)


def constant_predictions(
    train_pictures: Sequence[Picture], pictures: Sequence[Picture], num_boxes: int, seed: int
) -> list[Prediction]:
    """What can be had without looking: the same boxes for every picture, scaled to its size.

    The boxes of each class are the k-means centres of its training boxes (cxcywh, normalised by width and height),
    `num_boxes` shared equally by the classes; the score is the centre's share of the training boxes of its class.
    """
    by_class = defaultdict(list)
    for picture in train_pictures:
        size = np.array([picture.width, picture.height] * 2)
        for each in picture.objects or ():
            by_class[class_of(each.description)].append(np.array(each.box_xyxy) / size)
    boxes, scores, descriptions = [np.zeros((0, 4))], [np.zeros(0)], []
    for name in sorted(by_class):
        centres, shares = _clusters(np.array(by_class[name]), max(1, num_boxes // len(by_class)), seed, name)
        boxes.append(centres)
        scores.append(shares)
        descriptions += [name] * len(centres)
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    return [
        Prediction(boxes * np.array([picture.width, picture.height] * 2), scores, tuple(descriptions))
        for picture in pictures
    ]


def _clusters(
    boxes_xyxy: Float[np.ndarray, "n 4"], num_clusters: int, seed: int, name: str
) -> tuple[Float[np.ndarray, "k 4"], Float[np.ndarray, "k"]]:
    """Centres, as xyxy, and the share of the boxes in each; at most as many as there are different boxes."""
    x1, y1, x2, y2 = boxes_xyxy.T
    cxcywh = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
    num_clusters = min(num_clusters, len(np.unique(cxcywh, axis=0)))
    centres, _ = kmeans(cxcywh, num_clusters, iter=3, seed=generator("constant boxes", seed, name))
    counts = Counter(vq(cxcywh, centres)[0].tolist())
    shares = np.array([counts[cluster] for cluster in range(len(centres))]) / len(cxcywh)
    cx, cy, width, height = centres.T
    return np.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], axis=1), shares
