"""Small pictures with objects, and predictions for them, shared by the tests of metrics and reports."""

from pathlib import Path

import numpy as np

from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Object, Picture

Box = tuple[float, float, float, float]


def picture(*objects: tuple[Box, str], size: tuple[int, int] = (100, 100)) -> Picture:
    """A picture with objects of (box_xyxy, description)."""
    return Picture(Path("a.png"), *size, tuple(Object(tuple(map(float, box)), text) for box, text in objects))


def prediction(*detections: tuple[Box, float, str]) -> Prediction:
    """A prediction with detections of (box_xyxy, score, description)."""
    boxes, scores, descriptions = zip(*detections, strict=True) if detections else ((), (), ())
    return Prediction(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores, dtype=float), descriptions)


def perfect(picture: Picture) -> Prediction:
    """The true objects of a picture as its prediction."""
    return prediction(*((each.box_xyxy, 0.9, each.description) for each in picture.objects))


def iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


A, B, C = (0, 0, 10, 10), (20, 20, 40, 30), (50, 50, 60, 60)
