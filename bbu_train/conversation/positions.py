"""Qwen2.5-VL's three-dimensional positions."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def positions(runs: Sequence[int | tuple[int, int]]) -> Int[Tensor, "3 tokens"]:
    """(time, height, width) of each token of one conversation (Qwen2-VL, Wang et al. 2024, section 2.1).

    `runs` lists what follows what: a number of text tokens, or the (height, width) of a picture in image tokens.
    Text counts on in all three. A picture that begins at position p gives its token in row i and column j the
    position (p, p + i, p + j); what follows begins at p + max(height, width).
    """
    parts, start = [], 0  # of numpy: for pieces as small as these torch takes five times as long
    for run in runs:
        if isinstance(run, int):
            parts.append(np.broadcast_to(np.arange(start, start + run), (3, run)))
            start += run
        else:
            height, width = run
            parts.append(np.indices((1, height, width)).reshape(3, -1) + start)
            start += max(height, width)
    return torch.from_numpy(np.concatenate(parts, axis=1))
