"""Whether a value from a config is a number. A bool is none, although Python counts it as an int."""

import math


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: object, minimum: int = 0) -> bool:
    """Whether `value` is a whole number of at least `minimum`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_share(value: object) -> bool:
    """Whether `value` is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1
