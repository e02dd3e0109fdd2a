"""Tables of words and numbers, in line for a terminal."""

from dataclasses import dataclass
from unicodedata import east_asian_width

Value = int | float | str
"""As it is shown: numbers stay numbers, everything else is a text."""


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[Value]]
    note: str = ""


def number(value: Value) -> str:
    """Four digits; small ones as learning rates are typed, 1e-6."""
    if isinstance(value, str):
        return value
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}".replace("e+0", "e")


def as_text(table: Table) -> str:
    """Columns in line, numbers to the right; "-" stands for a number."""
    rows = [[number(value) for value in row] for row in table.rows]
    widths = [max(_width(row[column]) for row in [table.head, *rows]) for column in range(len(table.head))]
    right = [all(_is_number(row[column]) for row in rows) for column in range(len(table.head))]
    lines = ["  ".join(map(_padded, row, widths, right)).rstrip() for row in [table.head, *rows]]
    return "\n".join([*lines, *([table.note] if table.note else [])])


def _padded(word: str, width: int, to_right: bool) -> str:
    space = " " * (width - _width(word))
    return space + word if to_right else word + space


def _width(word: str) -> int:
    """Cells of a terminal: a Chinese character takes two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in word)


def _is_number(word: str) -> bool:
    return word == "-" or word.lstrip("+-")[:1].isdigit()
