"""Predictions for a picture as a row of JSON and as a drawing."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from bbu_train.images.colors import ClassColors
from bbu_train.images.overlay import full_size_sheet, prediction_panel
from bbu_train.predict.routes import PicturePredictions
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import class_of


def to_row(predictions: PicturePredictions, threshold: float) -> dict[str, Any]:
    """Return one line of predictions.jsonl. Boxes are pixels of the upright original, as the predictor clipped them.

    Objects of the head are those with a score of at least `threshold`, best first. Generated objects keep the order of
    the answer, and all of them are listed.
    """
    picture = predictions.sample.student
    row: dict[str, Any] = {"picture": str(picture.path), "width": picture.width, "height": picture.height}
    row["teachers"] = [str(teacher.path) for teacher in predictions.sample.teachers or ()]
    if predictions.head is not None:
        scores = predictions.head.scores
        best_first = np.argsort(-scores, kind="stable")
        indices = [i for i in best_first.tolist() if scores[i] >= threshold]
        row["head"] = {"objects": _objects(predictions.head, indices)}
    if predictions.generated is not None:
        prediction = predictions.generated.prediction
        row["generated"] = {
            "objects": _objects(prediction, range(len(prediction.scores))),
            "is_malformed": predictions.generated.is_malformed,
            "answer": predictions.generated.text,
        }
    if picture.objects is not None:
        row["true"] = [{"bbox_2d": list(each.box_xyxy), "label": each.description} for each in picture.objects]
    return row


def _objects(prediction: Prediction, indices: Iterable[int]) -> list[dict[str, Any]]:
    return [
        {
            "bbox_2d": [round(float(side), 2) for side in prediction.boxes_xyxy[i]],
            "label": prediction.descriptions[i],
            "class": class_of(prediction.descriptions[i]),
            "score": round(float(prediction.scores[i]), 4),
        }
        for i in indices
    ]


def draw_predictions(predictions: PicturePredictions, threshold: float, colors: ClassColors) -> Image.Image:
    """Draw the picture once per route, side by side, each with the true boxes.

    `threshold` applies to the head's boxes; generated boxes are all drawn. `colors` are those of all pictures.
    """
    picture, panels = predictions.sample.student, []
    if predictions.head is not None:
        panels.append(prediction_panel(picture, predictions.head, threshold, colors, "head"))
    if predictions.generated is not None:
        is_malformed = predictions.generated.is_malformed
        title = "generated (malformed: readable objects only)" if is_malformed else "generated"
        panels.append(prediction_panel(picture, predictions.generated.prediction, 0.0, colors, title))
    return full_size_sheet(panels, colors)
