"""torch.compile with the settings that this project needs."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from torch._functorch import config as functorch_config
from torch.fx.experimental import _config as symbolic_shapes

P = ParamSpec("P")
R = TypeVar("R")


def start_workers() -> None:
    """Start the processes in which torch compiles Triton kernels; it compiles one after the other until they run.

    It would start them itself, but only when the first graph has been traced.
    """
    from torch._inductor.async_compile import maybe_warm_pool

    maybe_warm_pool()


def compile_dynamic(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` into fused kernels for tensors of any length: one graph, in which lengths are symbols.

    Settings, and the reason for each:

    * No tiling analysis. That of torch 2.11 fails an assertion where tensors of symbolic lengths are concatenated and
      then normalised, as a head's memory is. Torch's own comment says that it does not apply to symbolic lengths yet.
    * No row and column reductions in one kernel. Torch would compile these twice, for few rows and for many.
    * Two lengths that are equal by chance are separate symbols. Otherwise a micro-batch with as many samples as the
      decoder has layers would get a graph of its own.
    """
    _configure()
    symbolic_shapes.use_duck_shape = False
    options = {"triton.coalesce_tiling_analysis": False, "triton.mix_order_reduction": False}
    return torch.compile(function, dynamic=True, options=options)


def compile_block(block: nn.Module) -> None:
    """Compile a block of a backbone in place, for tensors of any length. Blocks of one class share their graphs."""
    _configure()
    block.compile(dynamic=True)


def _configure() -> None:
    """Set what torch has no option for.

    * Up to 32 graphs per function. Torch's default is 8, and beyond its limit a function silently runs uncompiled. More
      than 8 are needed because dynamo specialises on lengths 0 and 1, and the head meets both for samples and for
      objects.
    * Floats are constants. Otherwise each function that reads one is traced twice, because the first attempt, with a
      symbol for it, ends where the float is needed as a number. No float here changes during a run.
    * Graphs with an autograd function, such as flash-attention 2's, are taken from torch's cache too. The cache's key
      covers what Dynamo traced of its forward and backward pass.
    """
    torch._dynamo.config.recompile_limit = 32
    torch._dynamo.config.specialize_float = True
    functorch_config.autograd_cache_allow_custom_autograd_functions = True
