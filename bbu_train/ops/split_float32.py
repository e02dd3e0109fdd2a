"""Float32 numbers kept as bfloat16 ones, ready for a product, and what those lack.

A float32 number is a bfloat16 one with 16 bits more. Beside the bfloat16 number nearest to it, it takes no float32 copy
but a whole number of 16 bits: the step from the one to the other, where the bits of both are read as whole numbers.
"""

import torch
from jaxtyping import BFloat16, Float, Int16
from torch import Tensor


def merge_float32(weight: BFloat16[Tensor, "*n"], rest: Int16[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The float32 number, to the last bit."""
    return (weight.view(torch.int16).int().bitwise_left_shift_(16).add_(rest)).view(torch.float32)


def split_float32(master: Float[Tensor, "*n"]) -> tuple[BFloat16[Tensor, "*n"], Int16[Tensor, "*n"]]:
    """The nearest bfloat16 number, of two as near the one that is farther from 0, and the rest."""
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)
