"""The orders in which an answer lists its objects: sort keys of a label and its box (x1, y1, x2, y2).

A key is computed for every object of every planned epoch. The orders are classes with a `__call__` because a function
that Hydra wraps with `_partial_` takes 0.1 ms a call.
"""

from collections.abc import Sequence
from typing import Any

from bbu_train.errors import InputError
from bbu_train.types.samples import class_of


class ReadingOrder:
    """From top to bottom, then from left to right."""

    def __call__(self, label: str, box: Sequence[int]) -> tuple[Any, ...]:
        x1, y1, *_ = box
        return y1, x1


class ColumnOrder:
    """By class name, then by column from left to right, then from top to bottom.

    The left edge of a box decides its column; a column is `width` pixels of the resized picture wide. Units of a rack
    and the screws of an ear stand in a column, so the next object mostly begins at the same x, below the last one.
    """

    def __init__(self, width: int) -> None:
        if type(width) is not int or width < 1:
            raise InputError(f"conversation.order.width={width}: expected a whole number of pixels, 1 or more.")
        self.width = width

    def __call__(self, label: str, box: Sequence[int]) -> tuple[Any, ...]:
        x1, y1, *_ = box
        return class_of(label), x1 // self.width, y1, x1
