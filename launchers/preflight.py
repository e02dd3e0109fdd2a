"""What is checked of a whole sweep before the first of its runs is started."""

from collections.abc import Sequence

from launchers.cells import Cell


def check(cells: Sequence[Cell]) -> None:
    pass
