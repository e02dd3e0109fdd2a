"""Whether a box can be used, and cutting it at the edges of its picture."""

import json
import math
import sys
from typing import NamedTuple

Box = tuple[float, float, float, float]


class BoxProblem(NamedTuple):
    """Why a box cannot be used: its kind, and a text with its numbers."""

    reason: str
    text: str


def box_problem(box_xyxy: Box, size: tuple[int, int] | None) -> BoxProblem | None:
    """Return what is wrong with a box, or None. It must lie in its picture of (width, height), if that is known.

    A box that touches the edges is inside.
    """
    width, height = size or (sys.float_info.max, sys.float_info.max)
    x1, y1, x2, y2 = box_xyxy
    if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
        return None
    box = format_box(box_xyxy)
    if not all(math.isfinite(value) for value in box_xyxy):
        return BoxProblem("not finite", f"box that is not finite {box}")
    if x1 > x2 or y1 > y2:
        return BoxProblem("inverted", f"inverted box {box}, expected [left, top, right, bottom]")
    if x1 == x2 or y1 == y2:
        return BoxProblem("zero area", f"zero-area box {box}")
    of_size = f" of {width} x {height} pixels" if size else ""
    return BoxProblem("outside the picture", f"box {box} outside its picture{of_size}")


def clip(box_xyxy: Box, size: tuple[int, int]) -> Box | None:
    """Return the part of a box that lies in its picture of (width, height), or None if there is none.

    None too if less than a pixel is left of a side, and for a box that is inverted, of zero area or not finite: no part
    of it is known to be right.
    """
    width, height = size
    x1, y1, x2, y2 = box_xyxy
    if not all(math.isfinite(value) for value in box_xyxy):
        return None
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    return (x1, y1, x2, y2) if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def format_box(box_xyxy: Box) -> str:
    """Return a box as JSON, whole numbers without a decimal point."""
    return json.dumps([int(value) if value.is_integer() and abs(value) < 1e15 else value for value in box_xyxy])
