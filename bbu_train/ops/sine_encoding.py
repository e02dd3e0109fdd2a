"""The sinusoidal encoding of positions (Vaswani et al. 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor


def sine_encoding(positions: Float[Tensor, "*n"], dim: int, temperature: float = 10_000) -> Float[Tensor, "*n dim"]:
    """Return sin(w_i x) and cos(w_i x) of each position x, for w_i = temperature^(-2 i / dim), 0 <= i < dim / 2.

    The wavelengths go from 2 pi up to almost 2 pi `temperature`. All sines come first, then all cosines.
    """
    frequencies = temperature ** -(torch.arange(dim // 2, device=positions.device) / (dim // 2))
    angles = positions[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
