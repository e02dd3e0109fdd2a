"""True and predicted boxes on a picture, for people to look at."""

from collections.abc import Sequence

from PIL import Image

from bbu_train.images import fonts
from bbu_train.images.colors import WHITE, ClassColors
from bbu_train.images.files import open_upright
from bbu_train.images.marks import Mark, shorten
from bbu_train.images.sheet import LEGIBLE, Entry, Panel, cell_size, class_entries, full_size, make_sheet
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of

CELL = 640  # pixels of the longer side of a picture in a sheet


def prediction_panel(
    picture: Picture, prediction: Prediction, score_threshold: float, colors: ClassColors, name: str
) -> Panel:
    """Return the upright picture with its true boxes (white, dashed) and its predicted ones (solid, in class colours).

    Only predictions with a score of at least `score_threshold` are drawn, and of overlapping labels that of the best
    score. The caption is `name` and how many boxes there are.
    """
    true = picture.objects or ()
    fonts.check([name, *(item.description for item in true)])
    predicted = sorted(
        (float(score), tuple(box.tolist()), text)
        for box, score, text in zip(prediction.boxes_xyxy, prediction.scores, prediction.descriptions, strict=True)
        if score >= score_threshold
    )
    marks = [
        Mark(box, f"{shorten(text)} {score:.2f}", class_of(text), colors[class_of(text)], False)
        for score, box, text in predicted[::-1]
    ]
    marks += [Mark(item.box_xyxy, shorten(item.description), class_of(item.description), WHITE, True) for item in true]
    minimum = f" with a score of {score_threshold:.2f} or more" if score_threshold else ""
    truth = "not annotated" if picture.objects is None else f"{len(true)} true"
    return Panel(open_upright(picture.path), marks, f"{name}: {truth}, {len(predicted)} predicted{minimum}", None)


def prediction_sheet(panels: Sequence[Panel], colors: ClassColors, title: str) -> Image.Image:
    """Return the panels of several pictures in cells of equal, moderate size."""
    return make_sheet(panels, cell_size(panels, CELL), title, _legend(panels, colors), 1)


def full_size_sheet(panels: Sequence[Panel], colors: ClassColors) -> Image.Image:
    """Return the panels of one picture side by side, with every pixel. Lines and letters suit the size."""
    cell = full_size(panels[0].image)
    return make_sheet(panels, cell, "", _legend(panels, colors), max(cell) / LEGIBLE)


def _legend(panels: Sequence[Panel], colors: ClassColors) -> list[Entry]:
    """Return the entries of boxes and of the classes. Without a true box, none explains them."""
    true = [Entry("true", WHITE, True)] if any(mark.is_dashed for panel in panels for mark in panel.marks) else []
    return [*true, Entry("predicted", WHITE, False), *class_entries(panels, colors)]
