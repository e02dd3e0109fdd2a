"""Float32 master weights stored in two parts, the first of which is ready for bfloat16 products.

A float32 master is stored as its bfloat16 weight plus an int16 with the 16 missing low bits. So masters need no float32
copy beside the bfloat16 weights: 4 bytes a weight, not 6.
"""

import torch
from jaxtyping import BFloat16, Float, Int16
from torch import Tensor


def merge_float32(weight: BFloat16[Tensor, "*n"], low_bits: Int16[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the float32 numbers that `split_float32` split, bit for bit."""
    return (weight.view(torch.int16).int().bitwise_left_shift_(16).add_(low_bits)).view(torch.float32)


def split_float32(master: Float[Tensor, "*n"]) -> tuple[BFloat16[Tensor, "*n"], Int16[Tensor, "*n"]]:
    """Return the nearest bfloat16 numbers (ties away from 0) and the 16 low bits of the float32 numbers.

    The low bits are signed: they are the difference of the two numbers' bits read as integers, negative where the
    bfloat16 number was rounded away from 0.
    """
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)
