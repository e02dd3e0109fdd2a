"""How numbers are written, in tables and pictures alike."""

import math

from bbu_train.reporting.tables import Value, number


def short(value: Value, longest: int = 18) -> str:
    """For a picture, where a long text would leave no room for anything else: its beginning and its end."""
    text = number(value)
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def plus_minus(mean: float, spread: float | None) -> str:
    """Both to the second digit of the spread, which is as far as the mean means anything."""
    if spread is None:
        return number(mean)
    if spread == 0 or abs(mean) < 1e-3:
        return f"{number(mean)} ± {number(spread)}"
    decimals = min(9, max(0, 1 - math.floor(math.log10(spread))))
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"
