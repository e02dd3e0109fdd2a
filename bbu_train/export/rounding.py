"""The weights of an export in the dtype of its files, and what rounding to it costs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def cast(
    weights: Mapping[str, Tensor], dtype: torch.dtype, part_of: Callable[[str], str]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the weights in `dtype`, and |rounded - float32| / |float32| of each part, in the Frobenius norm.

    `part_of` tells a weight's part from its name.
    """
    rounded: dict[str, Tensor] = {}
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, weight in weights.items():
        rounded[name] = weight.to(dtype)
        exact = weight.float()
        for index, values in enumerate((rounded[name].float() - exact, exact)):
            squares[part_of(name)][index] += float(values.square().sum(dtype=torch.float64))
    return rounded, {part: (lost / whole) ** 0.5 if whole else 0.0 for part, (lost, whole) in squares.items()}


def as_text(dtype_name: str, costs: Mapping[str, float]) -> str:
    """Return one line that says what rounding cost."""
    if not any(costs.values()):
        return f"written as {dtype_name}, without rounding"
    return f"rounded to {dtype_name}: |rounded - float32| / |float32| is {_listed(costs.items())}"


def _listed(costs: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{cost:.1e} ({part})" for part, cost in costs)
