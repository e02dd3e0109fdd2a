"""What one route detected in a picture, in pixels: what `load(...).predict` returns and predictions.jsonl holds."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bbu_train.errors import InputError, all_problems
from bbu_train.images.colors import ClassColors
from bbu_train.images.files import UnreadablePicture, to_upright
from bbu_train.images.overlay import full_size_sheet, prediction_panel
from bbu_train.runtime.file_names import printable
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Object, Picture, class_of

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """A box that a model predicted, with its description.

    box_xyxy     left, top, right and bottom, in pixels of the upright picture
    score        0 to 1: the head's confidence, or the mean probability of the tokens that spell the object
    description  "type/property/extra"
    """

    box_xyxy: Box
    score: float
    description: str

    @property
    def class_name(self) -> str:
        """The first level of the description."""
        return class_of(self.description)


@dataclass(frozen=True)
class ImageDetections:
    """What one route detected in one picture.

    image         the picture as it was given: its file, or the image itself
    width         of the upright picture, in pixels
    height        likewise
    objects       the head's are sorted by score, the best first; generated ones have the order of the answer
    threshold     the lowest score of the head's objects; 0 for generated ones, which are all listed
    answer        the text that the language model generated; None for the head
    is_malformed  whether some part of `answer` is not a valid object inside the picture
    colors        of the classes in `draw`
    """

    image: Path | Image.Image
    width: int
    height: int
    objects: tuple[Detection, ...]
    threshold: float
    answer: str | None = None
    is_malformed: bool = False
    colors: ClassColors = field(default_factory=lambda: ClassColors(()), repr=False, compare=False)

    def draw(self, truth: Iterable[tuple[Sequence[float], str]] | None = None) -> Image.Image:
        """Return the upright picture with the predicted boxes, above a legend.

        `truth` holds the (box_xyxy, description) of each true object: their boxes are white and dashed.
        Raises InputError for any other `truth`.
        """
        boxes = np.array([each.box_xyxy for each in self.objects], dtype=float).reshape(-1, 4)
        scores = np.array([each.score for each in self.objects], dtype=float)
        prediction = Prediction(boxes, scores, tuple(each.description for each in self.objects))
        objects = None if truth is None else _as_objects(truth)
        name = printable(self.image.name) if isinstance(self.image, Path) else "image"
        with on_disk([self.image], [name]) as [path]:
            picture = Picture(path, self.width, self.height, objects)
            panel = prediction_panel(picture, prediction, self.threshold, self.colors, name)
            return full_size_sheet([panel], self.colors)


def objects_of_head(prediction: Prediction, threshold: float) -> tuple[Detection, ...]:
    """Return the objects with a score of at least `threshold`, the best first."""
    best_first = np.argsort(-prediction.scores, kind="stable").tolist()
    return _objects(prediction, (i for i in best_first if prediction.scores[i] >= threshold))


def generated_objects(prediction: Prediction) -> tuple[Detection, ...]:
    """Return all objects of a generated answer, in its order."""
    return _objects(prediction, range(len(prediction.scores)))


def _objects(prediction: Prediction, indices: Iterable[int]) -> tuple[Detection, ...]:
    return tuple(
        Detection(_as_box(prediction.boxes_xyxy[i]), float(prediction.scores[i]), prediction.descriptions[i])
        for i in indices
    )


def _as_objects(truth: Iterable[tuple[Sequence[float], str]]) -> tuple[Object, ...]:
    try:
        objects = tuple(Object(_as_box(box), description) for box, description in truth)
    except (TypeError, ValueError):
        objects = None
    if objects is None or not all(isinstance(each.description, str) for each in objects):
        raise InputError("truth is not a list of ((left, top, right, bottom), 'description'), as the data has objects.")
    return objects


def _as_box(sides: Iterable[float]) -> Box:
    x1, y1, x2, y2 = map(float, sides)
    return x1, y1, x2, y2


@contextmanager
def on_disk(images: Sequence[Path | Image.Image], names: Sequence[str]) -> Iterator[list[Path]]:
    """Give a file of every image, in their order: what is not a file already is written into a temporary folder.

    `names` stand for the images in messages. Raises InputError that lists every image whose pixels cannot be read.
    """
    problems = []
    with tempfile.TemporaryDirectory(prefix="bbu_train-") as folder:
        paths = []
        for index, (image, name) in enumerate(zip(images, names, strict=True)):
            path = Path(folder) / f"{index}.png" if isinstance(image, Image.Image) else image
            paths.append(path)
            if isinstance(image, Image.Image):
                try:
                    to_upright(image, name).save(path, compress_level=1)
                except UnreadablePicture as error:
                    problems.append(str(error))
        if problems:
            raise all_problems("Images in memory", problems, "Repair these pictures, or leave them out.")
        yield paths
