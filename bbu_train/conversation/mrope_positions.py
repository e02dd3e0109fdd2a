"""Qwen2.5-VL's three-dimensional positions (M-RoPE)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def positions(spans: Sequence[int | tuple[int, int]]) -> Int[Tensor, "3 tokens"]:
    """Return (time, height, width) of each token of one conversation (Qwen2-VL, Wang et al. 2024, section 2.1).

    A span is a number of text tokens, or the (height, width) of a picture in image tokens. Text tokens count up in all
    three coordinates. In a picture that begins at position p, the token in row i and column j has the position
    (p, p + i, p + j); the next span begins at p + max(height, width).
    """
    parts, start = [], 0  # numpy, because torch takes five times as long for such small pieces
    for span in spans:
        if isinstance(span, int):
            parts.append(np.broadcast_to(np.arange(start, start + span), (3, span)))
            start += span
        else:
            height, width = span
            parts.append(np.indices((1, height, width)).reshape(3, -1) + start)
            start += max(height, width)
    return torch.from_numpy(np.concatenate(parts, axis=1))
