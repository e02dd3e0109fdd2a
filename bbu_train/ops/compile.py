"""torch.compile with the settings that this project needs."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.fx.experimental import _config as symbolic_shapes

P = ParamSpec("P")
R = TypeVar("R")


def compile_dynamic(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` into fused kernels for tensors of any length: one graph, in which lengths are symbols.

    Settings, and the reason for each:

    * No tiling analysis. That of torch 2.11 fails an assertion where tensors of symbolic lengths are concatenated and
      then normalised, as a head's memory is. Torch's own comment says that it does not apply to symbolic lengths yet.
    * No row and column reductions in one kernel. Torch would compile these twice, for few rows and for many.
    * Two lengths that are equal by chance are separate symbols. Otherwise a micro-batch with as many samples as the
      decoder has layers would get a graph of its own.
    * Up to 32 graphs per function. Torch's default is 8, and beyond its limit a function silently runs uncompiled. More
      than 8 are needed because dynamo specialises on lengths 0 and 1, and the head meets both for samples and for
      objects, in training and in evaluation.
    """
    torch._dynamo.config.recompile_limit = 32
    symbolic_shapes.use_duck_shape = False
    options = {"triton.coalesce_tiling_analysis": False, "triton.mix_order_reduction": False}
    return torch.compile(function, dynamic=True, options=options)
