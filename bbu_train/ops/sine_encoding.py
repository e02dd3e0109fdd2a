"""Numbers as sines, which a network tells apart more easily."""

import torch
from jaxtyping import Float
from torch import Tensor


def sine_encoding(positions: Float[Tensor, "*n"], size: int, longest: float = 10_000) -> Float[Tensor, "*n size"]:
    """sin and cos of `positions` at `size / 2` wavelengths from 2 pi to `longest` times that (Vaswani et al. 2017)."""
    frequencies = longest ** -(torch.arange(size // 2, device=positions.device) / (size // 2))
    angles = positions[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
