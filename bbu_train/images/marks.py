"""Boxes with labels on a drawing: dashed for the truth, solid for a prediction."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw, ImageFont

from bbu_train.images.colors import DARK, WHITE, Color, text_color
from bbu_train.images.fonts import font

Box = tuple[float, float, float, float]  # x1, y1, x2, y2

LINE, LETTERS = 2, 15  # pixels of lines and of letters, where the unit is 1
SMALLEST = 11  # pixels: smaller letters cannot be read
CROWD = 20  # more marks than these are drawn with thinner lines and smaller letters
MAX_LENGTH = 40  # characters of a label; a model in its first steps may write far more
MAX_SHARE = 0.6  # of the drawing's width that a label may take
MAX_COVERED = 0.25  # of the drawing's area that all labels together may take, or no picture would be left
NARROW = 6  # heights of a label: where a side of the picture is shorter, its labels stand beside it


class Mark(NamedTuple):
    """A box to draw.

    box_xyxy    in pixels of the picture; corners may come in any order
    text        its label
    class_name  its entry in the legend
    color       of its lines and its label; the label of a white box is dark
    is_dashed   whether its lines are dashed, as those of true boxes are
    """

    box_xyxy: Box
    text: str
    class_name: str
    color: Color
    is_dashed: bool

    def moved(self, scale: float, left: float, top: float) -> "Mark":
        """Return the mark of a picture that is scaled, then moved."""
        x1, y1, x2, y2 = self.box_xyxy
        return self._replace(box_xyxy=(left + scale * x1, top + scale * y1, left + scale * x2, top + scale * y2))


def draw_marks(draw: ImageDraw.ImageDraw, marks: Sequence[Mark], picture: Box, unit: float) -> None:
    """Draw the boxes, dashed ones first, then labels in the order of `marks`, until they cover `MAX_COVERED`.

    `picture` is where the picture lies in the drawing. No label covers another one or leaves the drawing, and those of
    a narrow picture stand beside it. Lines and letters become smaller where there are many marks, down to 0.6 of their
    size.
    """
    unit *= min(1, max(0.6, math.sqrt(CROWD / max(1, len(marks)))))
    for mark in sorted(marks, key=lambda mark: not mark.is_dashed):
        (draw_dashed if mark.is_dashed else draw_solid)(draw, mark.box_xyxy, mark.color, unit)
    _draw_labels(draw, marks, picture, unit)


def draw_solid(draw: ImageDraw.ImageDraw, box: Box, color: Color, unit: float) -> None:
    """Draw a box with a thin dark rim, so that it shows on any background."""
    x1, y1, x2, y2 = _sorted(box)
    width, rim = max(2, round(LINE * 1.5 * unit)), max(1, round(unit))
    draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline=DARK, width=width + 2 * rim)
    draw.rectangle((x1, y1, x2, y2), outline=color, width=width)


def draw_dashed(draw: ImageDraw.ImageDraw, box: Box, color: Color, unit: float) -> None:
    """Draw a box of dashes on a dark line."""
    x1, y1, x2, y2 = _sorted(box)
    width, dash = max(1, round(LINE * unit)), 8 * unit
    draw.rectangle((x1, y1, x2, y2), outline=DARK, width=width)
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], dtype=float)
    for start, end in pairwise(corners):
        length = float(np.abs(end - start).sum())
        for offset in np.arange(0, length, 2 * dash):
            ends = [start + (end - start) * at / length for at in (offset, min(offset + dash, length))]
            draw.line([tuple(point) for point in ends], fill=color, width=width)


def shorten(text: str) -> str:
    """Return `text` on one line of at most `MAX_LENGTH` characters; "?" stands for an empty text."""
    line = " ".join(text.split()) or "?"
    return line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 3] + "..."


def fit(text: str, letters: ImageFont.FreeTypeFont, width: float) -> str:
    """Return `text`, cut so that it is at most `width` pixels wide."""
    if letters.getlength(text) <= width:
        return text
    length = bisect_right(range(len(text)), width, key=lambda length: letters.getlength(text[:length] + "..."))
    return text[: length - 1] + "..."


def _draw_labels(draw: ImageDraw.ImageDraw, marks: Sequence[Mark], picture: Box, unit: float) -> None:
    size, pad = max(SMALLEST, round(LETTERS * unit)), max(1, round(2 * unit))
    height = round(size * 1.2) + 2 * pad
    places: list[Box] = []
    for mark in marks:
        letters = font(size, mark.text)
        text = fit(mark.text, letters, MAX_SHARE * draw.im.size[0])
        width = letters.getlength(text) + 2 * pad
        corners = _corners(mark.box_xyxy, picture, width, height)
        place = _free_place(corners, width, height, draw.im.size, places)
        if place is None:
            continue
        places.append(place)
        if len(places) > 1 and sum(map(_area, places)) > MAX_COVERED * draw.im.size[0] * draw.im.size[1]:
            break
        background = DARK if mark.color == WHITE else mark.color
        draw.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=background)
        middle = (place[1] + place[3]) / 2
        draw.text((place[0] + pad, middle), text, font=letters, fill=text_color(background), anchor="lm")


def _corners(box: Box, picture: Box, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Yield the upper left corners that suit a label of a box, the best first."""
    x1, y1, x2, y2 = _sorted(box)
    left, top, right, bottom = picture
    if bottom - top < NARROW * height:
        yield from ((x, y) for y in (top - height, bottom) for x in (x1, x2 - width))
    elif right - left < NARROW * height:
        yield from ((x, y) for x in (right, left - width) for y in (y1, y2 - height))
    yield from ((x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, x2 - width))


def _free_place(
    corners: Iterable[tuple[float, float]], width: float, height: float, size: tuple[int, int], places: Sequence[Box]
) -> Box | None:
    """Return the first rectangle, moved into a drawing of `size`, that covers no other one; None if there is none."""
    for x, y in corners:
        left, top = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        place = left, top, left + width, top + height
        if not any(_overlap(place, other) for other in places):
            return place
    return None


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _sorted(box: Box) -> Box:
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
