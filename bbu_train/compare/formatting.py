"""How tables and plots write numbers."""

import math

from bbu_train.reporting.tables import Value, format_number


def abbreviate(value: Value, max_length: int = 18) -> str:
    """Return the value as a label of at most `max_length` characters.

    A longer text keeps its beginning and its end, with an ellipsis between.
    """
    text = format_number(value)
    half = (max_length - 1) // 2
    return text if len(text) <= max_length else f"{text[:half]}…{text[-half:]}"


def mean_and_std(mean: float, std: float | None) -> str:
    """Return "mean ± std", both to the second significant digit of `std`; further digits of the mean are noise."""
    if std is None:
        return format_number(mean)
    if std == 0 or abs(mean) < 1e-3:
        return f"{format_number(mean)} ± {format_number(std)}"
    decimals = min(9, max(0, 1 - math.floor(math.log10(std))))
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"
