"""Random views of training pictures: parts, mirrored, larger or smaller, in other colours."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bbu_train.errors import all_problems
from bbu_train.ops.numbers import is_number
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object, Picture, Sample, View

NUM_TRIES = 20  # parts that are drawn before the whole picture is taken, where all of them lose every object
SHARES = ("left_right", "top_bottom", "crop", "brightness", "contrast", "saturation")
POSITIVE_SHARES = ("min_side", "min_visible")

Part = tuple[int, int, int, int]


@dataclass(frozen=True)
class RandomViews:
    """How a training sample's student is seen in an epoch: a function of (seed, epoch, sample) that needs no pixel.

    `left_right` and `top_bottom` are the probabilities that it is mirrored so. With probability `crop` a part is taken,
    each of its sides evenly drawn from `min_side` to 1 of the picture's, at an even place. An object stays if at least
    `min_visible` of its area is in the part, and its box is cut to it; where all would be lost, another part is drawn.
    What is seen is enlarged by a factor drawn from `scale`, [least, most], evenly in its logarithm, before the model's
    limits to the area of a picture apply. Each colour factor is evenly drawn from 1 - x to 1 + x.
    """

    left_right: float | int
    top_bottom: float | int
    crop: float | int
    min_side: float | int
    min_visible: float | int
    scale: Sequence[float | int]
    brightness: float | int
    contrast: float | int
    saturation: float | int
    seed: int

    def __post_init__(self):
        problems = [
            f"augmentation.{key}={getattr(self, key)}: expected a number from 0 to 1"
            for key in SHARES
            if not is_number(getattr(self, key)) or not 0 <= getattr(self, key) <= 1
        ]
        problems += [
            f"augmentation.{key}={getattr(self, key)}: expected a number above 0, at most 1"
            for key in POSITIVE_SHARES
            if not is_number(getattr(self, key)) or not 0 < getattr(self, key) <= 1
        ]
        ends = list(self.scale) if isinstance(self.scale, list | tuple) else []
        if len(ends) != 2 or not all(map(is_number, ends)) or not 0 < ends[0] <= ends[1] < math.inf:
            problems.append(f"augmentation.scale={self.scale}: expected [least, most], above 0")
        if problems:
            raise all_problems("augmentation", problems, "Set these keys in conf/augmentation or as overrides.")

    def __call__(self, sample: Sample, epoch: int) -> Sample:
        return replace(sample, student=self._seen(sample.student, generator("view", self.seed, epoch, sample.id)))

    def _seen(self, picture: Picture, random: np.random.Generator) -> Picture:
        left_right, top_bottom, crops, *colours, size = random.random(7).tolist()
        changes = self.brightness, self.contrast, self.saturation
        factors = (1 + change * (2 * chance - 1) for change, chance in zip(changes, colours, strict=True))
        least, most = self.scale
        scale = least * (most / least) ** size
        part = self._part(picture, random) if crops < self.crop else (0, 0, picture.width, picture.height)
        width, height = max(1, round(scale * (part[2] - part[0]))), max(1, round(scale * (part[3] - part[1])))
        flips = left_right < self.left_right, top_bottom < self.top_bottom
        view = View(picture.width, picture.height, part, *flips, *factors)
        if picture.objects is None:
            return Picture(picture.path, width, height, None, view)
        visible = _visible(picture.objects, part, self.min_visible)
        return Picture(picture.path, width, height, tuple(_moved(visible, view, width, height)), view)

    def _part(self, picture: Picture, random: np.random.Generator) -> Part:
        """In whole pixels, with an object in it if the picture has any."""
        for _ in range(NUM_TRIES):
            wide, high, across, down = random.random(4).tolist()
            width, height = (
                max(1, round(side * (self.min_side + (1 - self.min_side) * share)))
                for side, share in ((picture.width, wide), (picture.height, high))
            )
            left, top = round(across * (picture.width - width)), round(down * (picture.height - height))
            part = left, top, left + width, top + height
            if not picture.objects or _visible(picture.objects, part, self.min_visible):
                return part
        return 0, 0, picture.width, picture.height


def _visible(objects: Sequence[Object], part: Part, min_visible: float) -> list[Object]:
    """The objects of whose area at least that share lies in the part, their boxes cut to it."""
    left, top, right, bottom = part
    kept = []
    for each in objects:
        x1, y1, x2, y2 = each.box_xyxy
        cut = max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)
        if cut == each.box_xyxy:
            kept.append(each)
        elif cut[0] < cut[2] and cut[1] < cut[3]:
            visible = (cut[2] - cut[0]) * (cut[3] - cut[1])
            if visible >= min_visible * (x2 - x1) * (y2 - y1):
                kept.append(Object(cut, each.description))
    return kept


def _moved(objects: Sequence[Object], view: View, width: int, height: int) -> Iterator[Object]:
    """From the upright picture to the view, where its part has `width` x `height` pixels."""
    left, top, right, bottom = view.part_xyxy
    part_width, part_height = right - left, bottom - top
    for each in objects:
        x1, y1, x2, y2 = each.box_xyxy
        x1, x2 = (x1 - left) * width / part_width, (x2 - left) * width / part_width
        y1, y2 = (y1 - top) * height / part_height, (y2 - top) * height / part_height
        if view.left_right:
            x1, x2 = width - x2, width - x1
        if view.top_bottom:
            y1, y2 = height - y2, height - y1
        yield Object((x1, y1, x2, y2), each.description)
