"""Texts in aligned columns, as a terminal shows them."""

from collections.abc import Sequence
from unicodedata import east_asian_width


def aligned(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> list[str]:
    """Return a line for the header and for each row. Columns of numbers are aligned to the right.

    A "-" in a column of numbers is a missing number.
    """
    lines = [*([header] if header is not None else []), *rows]
    widths = [max(map(_display_width, column)) for column in zip(*lines, strict=True)]
    to_right = [all(map(_is_number, column)) for column in zip(*rows, strict=True)] or [False] * len(widths)
    return ["  ".join(map(_pad, line, widths, to_right)).rstrip() for line in lines]


def _pad(text: str, width: int, to_right: bool) -> str:
    padding = " " * (width - _display_width(text))
    return padding + text if to_right else text + padding


def _display_width(text: str) -> int:
    """Return the number of terminal columns that `text` takes: two for a Chinese character."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("+-")[:1].isdigit()
