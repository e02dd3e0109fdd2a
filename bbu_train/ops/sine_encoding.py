"""The sinusoidal encoding of positions (Vaswani et al. 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor


def sine_encoding(positions: Float[Tensor, "*n"], size: int, longest: float = 10_000) -> Float[Tensor, "*n size"]:
    """Return sin(w_i x) and cos(w_i x) of each position x, for w_i = longest^(-2 i / size), 0 <= i < size / 2.

    The wavelengths go from 2 pi up to almost 2 pi `longest`. All sines come first, then all cosines.
    """
    frequencies = longest ** -(torch.arange(size // 2, device=positions.device) / (size // 2))
    angles = positions[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
