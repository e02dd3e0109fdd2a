"""Tables of texts and numbers, and how a terminal shows them."""

from dataclasses import dataclass
from unicodedata import east_asian_width

Value = int | float | str
"""The value of a table's cell: a number, or a text for everything else."""


@dataclass(frozen=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[Value]]
    note: str = ""


def format_number(value: Value) -> str:
    """Return a number with four significant digits, below 1e-3 in scientific notation (1e-6). Texts are unchanged."""
    if isinstance(value, str):
        return value
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}".replace("e+0", "e")


def as_text(table: Table) -> str:
    """Return the table with aligned columns, numbers to the right. A "-" in a column of numbers is a missing number."""
    rows = [[format_number(value) for value in row] for row in table.rows]
    lines = [table.header, *rows]
    columns = range(len(table.header))
    widths = [max(_display_width(line[column]) for line in lines) for column in columns]
    right_aligned = [all(_is_number(row[column]) for row in rows) for column in columns]
    texts = ["  ".join(map(_pad, line, widths, right_aligned)).rstrip() for line in lines]
    return "\n".join([*texts, *([table.note] if table.note else [])])


def as_markdown(table: Table) -> str:
    """Return the table in Markdown, as GitHub and MLflow show it."""
    rows = [table.header, ["---"] * len(table.header), *([format_number(value) for value in row] for row in table.rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def _pad(text: str, width: int, to_right: bool) -> str:
    padding = " " * (width - _display_width(text))
    return padding + text if to_right else text + padding


def _display_width(text: str) -> int:
    """Return the number of terminal columns that `text` takes: two for a Chinese character."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("+-")[:1].isdigit()
