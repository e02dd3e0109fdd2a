"""Pictures with objects, and predictions for them, that tests of scores need."""

from pathlib import Path

import numpy as np

from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Object, Picture


def picture(*objects, size=(100, 100)):
    return Picture(Path("a.png"), *size, tuple(Object(tuple(map(float, box)), text) for box, text in objects))


def prediction(*found):
    boxes, scores, descriptions = zip(*found, strict=True) if found else ((), (), ())
    return Prediction(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores, dtype=float), descriptions)


def perfect(picture):
    return prediction(*((each.box_xyxy, 0.9, each.description) for each in picture.objects))


A, B, C = (0, 0, 10, 10), (20, 20, 40, 30), (50, 50, 60, 60)
