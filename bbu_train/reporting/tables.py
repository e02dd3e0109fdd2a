"""Tables of texts and numbers, and how a terminal shows them."""

from dataclasses import dataclass

from bbu_train.runtime.columns import aligned

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
    return "\n".join([*aligned(rows, table.header), *([table.note] if table.note else [])])


def as_markdown(table: Table) -> str:
    """Return the table in Markdown, as GitHub and MLflow show it."""
    rows = [table.header, ["---"] * len(table.header), *([format_number(value) for value in row] for row in table.rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, *(["", table.note] if table.note else [])])
