"""A prediction as a line of JSON and as a picture."""

from typing import Any

import numpy as np
from PIL import Image

from bbu_train.images.overlay import overlay
from bbu_train.images.sheet import add_title, make_sheet
from bbu_train.predict.routes import Found
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of


def line(found: Found, threshold: float) -> dict[str, Any]:
    """Boxes in pixels of the upright original, cut at its edges; the head's best first, the written as written."""
    picture = found.sample.student
    row: dict[str, Any] = {"picture": str(picture.path), "width": picture.width, "height": picture.height}
    row["teachers"] = [str(teacher.path) for teacher in found.sample.teachers or ()]
    if found.head is not None:
        order = np.argsort(-found.head.scores, kind="stable")
        row["head"] = {
            "objects": _objects(found.head, picture, [i for i in order if found.head.scores[i] >= threshold])
        }
    if found.generated is not None:
        prediction = found.generated.prediction
        objects = _objects(prediction, picture, range(len(prediction.scores)))
        row["generated"] = {"objects": objects, "num_malformed": int(found.generated.is_malformed)}
        row["generated"]["answer"] = found.generated.text
    if picture.objects is not None:
        row["true"] = [{"bbox_2d": list(each.box_xyxy), "label": each.description} for each in picture.objects]
    return row


def _objects(prediction: Prediction, picture: Picture, chosen) -> list[dict[str, Any]]:
    boxes = prediction.boxes_xyxy.clip(0, [picture.width, picture.height] * 2)
    return [
        {
            "bbox_2d": [round(float(side), 2) for side in boxes[i]],
            "label": prediction.descriptions[i],
            "class": class_of(prediction.descriptions[i]),
            "score": round(float(prediction.scores[i]), 4),
        }
        for i in chosen
    ]


def drawn(found: Found, threshold: float) -> Image.Image:
    """The picture once for each route, side by side, true boxes in both."""
    picture, panels = found.sample.student, []
    if found.head is not None:
        panels.append(add_title(overlay(picture, found.head, threshold), "head"))
    if found.generated is not None:
        title = "generated (malformed: what could be read)" if found.generated.is_malformed else "generated"
        panels.append(add_title(overlay(picture, found.generated.prediction, 0.0), title))
    return make_sheet(panels, columns=2)
