"""Random views of training pictures: cropped, flipped, scaled and in other colours."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bbu_train.errors import all_problems
from bbu_train.ops.numbers import is_number
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object, Picture, Sample, View

NUM_TRIES = 20  # crops to draw; if each of them loses every object, the whole picture is taken
SHARES = ("left_right", "top_bottom", "crop", "brightness", "contrast", "saturation")
POSITIVE_SHARES = ("min_side", "min_visible")

Part = tuple[int, int, int, int]


@dataclass(frozen=True)
class RandomViews:
    """Draws a `View` of the student's picture in each epoch. It depends only on (seed, epoch, sample), not on pixels.

    left_right   probability of a flip from left to right
    top_bottom   probability of a flip from top to bottom
    crop         probability of a crop at a uniformly drawn place. A crop that loses every object is drawn again
    min_side     smallest side of a crop as a share of the picture's side; each side is drawn uniformly, up to 1
    min_visible  an object stays, with its box cut to the crop, if at least this share of its area is in the crop
    scale        [min, max] of the factor by which the crop is enlarged, drawn uniformly in its logarithm. The model's
                 limits for the area of a picture apply afterwards
    brightness   the factor is drawn uniformly from 1 - this to 1 + this
    contrast     likewise
    saturation   likewise
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

    def __post_init__(self) -> None:
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
            problems.append(f"augmentation.scale={self.scale}: expected [min, max], above 0")
        if problems:
            raise all_problems("augmentation", problems, "Set these keys in conf/augmentation or as overrides.")

    def __call__(self, sample: Sample, epoch: int) -> Sample:
        return replace(sample, student=self._view(sample.student, generator("view", self.seed, epoch, sample.id)))

    def _view(self, picture: Picture, random: np.random.Generator) -> Picture:
        left_right, top_bottom, crop, *colours, size = random.random(7).tolist()
        ranges = self.brightness, self.contrast, self.saturation
        factors = (1 + amplitude * (2 * number - 1) for amplitude, number in zip(ranges, colours, strict=True))
        min_scale, max_scale = self.scale
        scale = min_scale * (max_scale / min_scale) ** size
        part = self._crop(picture, random) if crop < self.crop else (0, 0, picture.width, picture.height)
        width, height = max(1, round(scale * (part[2] - part[0]))), max(1, round(scale * (part[3] - part[1])))
        flips = left_right < self.left_right, top_bottom < self.top_bottom
        view = View(picture.width, picture.height, part, *flips, *factors)
        if picture.objects is None:
            return Picture(picture.path, width, height, None, view)
        visible = _visible(picture.objects, part, self.min_visible)
        return Picture(picture.path, width, height, tuple(_transform(visible, view, width, height)), view)

    def _crop(self, picture: Picture, random: np.random.Generator) -> Part:
        """Draw a crop in whole pixels, with an object in it if the picture has any."""
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
    """Return the objects with at least the share `min_visible` of their area in the part, their boxes cut to it."""
    left, top, right, bottom = part
    kept = []
    for item in objects:
        x1, y1, x2, y2 = item.box_xyxy
        cut = max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)
        if cut == item.box_xyxy:
            kept.append(item)
        elif cut[0] < cut[2] and cut[1] < cut[3]:
            visible = (cut[2] - cut[0]) * (cut[3] - cut[1])
            if visible >= min_visible * (x2 - x1) * (y2 - y1):
                kept.append(replace(item, box_xyxy=cut))
    return kept


def _transform(objects: Sequence[Object], view: View, width: int, height: int) -> Iterator[Object]:
    """Transform boxes from the upright picture to the view, which is `width` x `height` pixels large."""
    left, top, right, bottom = view.part_xyxy
    part_width, part_height = right - left, bottom - top
    for item in objects:
        x1, y1, x2, y2 = item.box_xyxy
        x1, x2 = (x1 - left) * width / part_width, (x2 - left) * width / part_width
        y1, y2 = (y1 - top) * height / part_height, (y2 - top) * height / part_height
        if view.left_right:
            x1, x2 = width - x2, width - x1
        if view.top_bottom:
            y1, y2 = height - y2, height - y1
        yield replace(item, box_xyxy=(x1, y1, x2, y2))
