"""Predictions for a picture as a row of JSON and as a drawing."""

from typing import Any

from PIL import Image

from bbu_train.data.annotations import clean_description, has_text
from bbu_train.data.boxes import box_problem
from bbu_train.images.colors import ClassColors
from bbu_train.images.overlay import full_size_sheet, prediction_panel
from bbu_train.predict.detections import Detection, generated_objects, objects_of_head
from bbu_train.predict.routes import PicturePredictions


def to_row(predictions: PicturePredictions, route: str, threshold: float) -> dict[str, Any]:
    """Return what `route` predicted as a line of JSON that data=jsonl reads: see `data.jsonl`.

    Boxes are pixels of the upright original, as the predictor clipped them. Objects of the head are those with a score
    of at least `threshold`, best first. Generated objects keep the order of the answer, and all of them are listed.
    What no data set can hold, such as an object without a description, is under "unusable".
    """
    picture, generated = predictions.sample.student, predictions.generated
    if route == "head":
        assert predictions.head is not None
        objects = objects_of_head(predictions.head, threshold)
    else:
        assert generated is not None
        objects = generated_objects(generated.prediction)
    rows = [_object_row(each) for each in objects]
    row: dict[str, Any] = {
        "images": [str(picture.path.absolute())],
        "objects": [each for each in rows if _is_usable(each)],
        "unusable": [each for each in rows if not _is_usable(each)],
        "route": route,
        "width": picture.width,
        "height": picture.height,
        "teacher_images": [str(teacher.path.absolute()) for teacher in predictions.sample.teachers or ()],
    }
    if route == "generated":
        row |= {"answer": generated.text, "is_malformed": generated.is_malformed}
    if picture.objects is not None:
        row["true_objects"] = [{"bbox_2d": list(each.box_xyxy), "desc": each.description} for each in picture.objects]
    return row


def _object_row(detection: Detection) -> dict[str, Any]:
    box = [round(side, 2) for side in detection.box_xyxy]
    return {"bbox_2d": box, "desc": detection.description, "score": round(detection.score, 4)}


def _is_usable(row: dict[str, Any]) -> bool:
    """Whether data=jsonl reads an object: its box still has an area after rounding, and its description can be seen."""
    return box_problem(tuple(row["bbox_2d"]), None) is None and _is_description(row["desc"])


def _is_description(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return has_text(clean_description(text))


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
