"""In which order an answer names its objects: what a written object is sorted by, its label and (x1, y1, x2, y2).

They are called for every object of every epoch that is planned, so they are objects: what Hydra makes of a function
with `_partial_` takes 0.1 ms a call.
"""

from collections.abc import Sequence
from typing import Any

from bbu_train.errors import InputError
from bbu_train.types.samples import class_of


class ReadingOrder:
    """From top to bottom, and then from left to right."""

    def __call__(self, label: str, box: Sequence[int]) -> tuple[Any, ...]:
        x1, y1, *_ = box
        return y1, x1


class ColumnOrder:
    """One class after the other by their names, and each in columns from left to right, from top to bottom in each.

    A column is where a box begins, `width` pixels of the resized picture wide. Units of a rack and the screws of an ear
    stand in one, so that what comes next mostly begins where the last one did, and is the one below it.
    """

    def __init__(self, width: int):
        if type(width) is not int or width < 1:
            raise InputError(f"conversation.order.width={width}: expected a whole number of pixels, 1 or more.")
        self.width = width

    def __call__(self, label: str, box: Sequence[int]) -> tuple[Any, ...]:
        x1, y1, *_ = box
        return class_of(label), x1 // self.width, y1, x1
