"""Annotated pictures, and the conversations made from them. This module does not need torch."""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple


class Role(IntEnum):
    """Whose answer a token belongs to.

    Only answer tokens have a language loss: those from the first token of the answer to its `<|im_end|>` inclusive.
    """

    NONE = 0
    TEACHER = 1
    STUDENT = 2


@dataclass(frozen=True)
class Object:
    """One annotated object.

    box_xyxy      in absolute pixels of the upright picture; with a `Picture.view`, in pixels of the view
    description   "type/property/extra"
    is_difficult  whether it is left out of scores, as Pascal VOC does: a prediction of it is neither right nor wrong
    """

    box_xyxy: tuple[float, float, float, float]
    description: str
    is_difficult: bool = False


def class_of(description: str) -> str:
    """Return the first level of a description: "type" of "type/property/extra"."""
    return description.split("/", 1)[0]


@dataclass(frozen=True)
class View:
    """An augmented view of a picture file: crop, resize, flip, then change colours, in this order.

    width       of the upright picture, in pixels
    height      of the upright picture, in pixels
    part_xyxy   the crop, in whole pixels of the upright picture
    left_right  whether the crop is flipped from left to right
    top_bottom  whether the crop is flipped from top to bottom
    brightness  factor; 1 changes nothing
    contrast    factor, applied after brightness
    saturation  factor, applied after contrast
    """

    width: int
    height: int
    part_xyxy: tuple[int, int, int, int]
    left_right: bool
    top_bottom: bool
    brightness: float
    contrast: float
    saturation: float


@dataclass(frozen=True)
class Picture:
    """A picture file and its annotation.

    path     the file
    width    of the upright picture (EXIF orientation applied), in pixels; with a `view`, of the view
    height   likewise
    objects  empty if the picture is annotated as empty, None if nobody annotated it
    view     the augmented view to read from the file; None for the whole picture
    ignored  objects that are neither trained nor scored; with a `view` always empty, because views are only trained
    """

    path: Path
    width: int
    height: int
    objects: tuple[Object, ...] | None
    view: View | None = None
    ignored: tuple[Object, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A student's picture and its teachers' pictures: annotated examples that the model reads before it.

    id        the sample's name in messages, such as "train.jsonl:12"
    student   the picture to learn from, or to predict
    teachers  fixed by the data, or None: they are then drawn from the pool
    """

    id: str
    student: Picture
    teachers: tuple[Picture, ...] | None


@dataclass(frozen=True)
class PictureFormat:
    """The format in which the vision tower reads pictures.

    A picture is resized so that its sides are multiples of `patch_size * merge_size`.

    patch_size      side of a patch, in pixels
    merge_size      side of an image token, in patches
    window_size     side of a window of windowed attention, in pixels
    min_pixels      smallest area after resizing
    max_pixels      largest area after resizing
    teachers_apart  whether collators keep each teacher's picture apart, so that the model can cache its features
    """

    patch_size: int
    merge_size: int
    window_size: int
    min_pixels: int
    max_pixels: int
    teachers_apart: bool


@dataclass(frozen=True)
class Turn:
    """One question about one picture, and its answer.

    role     TEACHER or STUDENT
    picture  the picture
    prompt   the question
    answer   the true answer, or None if the model must generate it
    """

    role: Role
    picture: Picture
    prompt: str
    answer: str | None


@dataclass(frozen=True)
class Conversation:
    """Teachers' turns, then the student's turn. The system prompt is not in it: the conversation builder adds it.

    sample_id  the sample's name in messages
    turns      in their order, the student's last
    """

    sample_id: str
    turns: tuple[Turn, ...]

    @property
    def student(self) -> Turn:
        return self.turns[-1]


class SampleVisit(NamedTuple):
    """One visit to a sample in training.

    epoch  from 0; augmentation, teachers and noise depend on it
    index  of the sample in its split
    """

    epoch: int
    index: int


PlannedStep = tuple[tuple[SampleVisit, ...], ...]
"""The samples of one optimizer step, in the rows that the sampler planned. A layout may regroup them."""
