"""torch.compile as this project uses it."""

from collections.abc import Callable

import torch


def compiled(function: Callable) -> Callable:
    """`function` as fused kernels for tensors of any length: one graph, in which lengths are symbols.

    Without the analysis of tilings: that of torch 2.11 stops with an assertion where symbolic lengths are joined and
    then normalised, as a head's memory is, and by its own account it does nothing for symbolic lengths.
    """
    return torch.compile(function, dynamic=True, options={"triton.coalesce_tiling_analysis": False})
