"""Annotated pictures and the conversations made of them. Nothing here needs torch."""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple


class Role(IntEnum):
    """Whose answer a token belongs to. Only answer tokens, `<|im_end|>` included, carry a language loss."""

    NONE = 0
    TEACHER = 1
    STUDENT = 2


@dataclass(frozen=True)
class Object:
    """One annotated thing: its box in absolute pixels of the upright picture, and "type/property/extra"."""

    box_xyxy: tuple[float, float, float, float]
    description: str


def class_of(description: str) -> str:
    """The first level of "type/property/extra"."""
    return description.split("/", 1)[0]


@dataclass(frozen=True)
class View:
    """What is seen of a picture file: a part of it, turned over or not, in other colours.

    `width` and `height` are those of the upright picture, in which `part_xyxy` lies, in whole pixels. That part is
    resized, then mirrored from left to right (`left_right`) and from top to bottom (`top_bottom`); then brightness,
    contrast and saturation are multiplied by the factors of these names.
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
    """A picture file, its upright (EXIF-applied) size in pixels, and its objects; `None`: nobody annotated it.

    With a `view`, size and boxes are those of what is seen.
    """

    path: Path
    width: int
    height: int
    objects: tuple[Object, ...] | None
    view: View | None = None


@dataclass(frozen=True)
class Sample:
    """A student picture and, where the data fixes them, its teachers; `None`: they are drawn from the pool.

    `id` names the sample in every message, such as "train.jsonl:12".
    """

    id: str
    student: Picture
    teachers: tuple[Picture, ...] | None


@dataclass(frozen=True)
class PictureFormat:
    """How the vision tower takes pictures. Lengths in pixels; `merge_size` patches a side make one image token.

    A picture is resized to multiples of `patch_size * merge_size` with an area within [min_pixels, max_pixels].
    `teachers_apart`: each picture of a teacher comes by itself, so that what is made of it can be kept.
    """

    patch_size: int
    merge_size: int
    window_size: int
    min_pixels: int
    max_pixels: int
    teachers_apart: bool


@dataclass(frozen=True)
class Turn:
    """One question about one picture and its answer. `answer` is None where the model is to write it."""

    role: Role
    picture: Picture
    prompt: str
    answer: str | None


@dataclass(frozen=True)
class Conversation:
    """Teacher turns, and the student's turn last; the builder that made it says the system prompt."""

    sample_id: str
    turns: tuple[Turn, ...]

    @property
    def student(self) -> Turn:
        return self.turns[-1]


class Draw(NamedTuple):
    """One visit to a sample: which epoch, and which sample of the split."""

    epoch: int
    index: int


Step = tuple[tuple[Draw, ...], ...]
"""The set of samples of one optimizer step, in the rows that its sampler planned; any layout may regroup them."""
