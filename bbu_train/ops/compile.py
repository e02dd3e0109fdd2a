"""torch.compile as this project uses it."""

from collections.abc import Callable

import torch
from torch.fx.experimental import _config as symbolic_shapes


def compile_dynamic(function: Callable) -> Callable:
    """`function` as fused kernels for tensors of any length: one graph, in which lengths are symbols.

    Without the analysis of tilings: that of torch 2.11 stops with an assertion where symbolic lengths are joined and
    then normalised, as a head's memory is, and by its own account it does nothing for symbolic lengths. And without
    reductions along rows and columns in one kernel, for which code is made twice: for few rows and for many.

    Lengths that are equal by chance have symbols of their own, or a micro-batch of as many samples as the decoder has
    layers would be compiled for that number alone. Lengths of 0 and 1 are no symbols: a head meets both, of samples and
    of objects, in training and in evaluation, and torch's limit of 8 graphs would leave the ninth uncompiled.
    """
    torch._dynamo.config.recompile_limit = 32
    symbolic_shapes.use_duck_shape = False
    options = {"triton.coalesce_tiling_analysis": False, "triton.mix_order_reduction": False}
    return torch.compile(function, dynamic=True, options=options)
