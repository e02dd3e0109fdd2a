"""Qwen2.5-VL's three-dimensional positions."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def positions(runs: Sequence[int | tuple[int, int]]) -> Int[Tensor, "3 tokens"]:
    """(time, height, width) of each token of one conversation (Qwen2-VL, Wang et al. 2024, section 2.1).

    `runs` lists what follows what: a number of text tokens, or the (height, width) of a picture in image tokens.
    Text counts on in all three. A picture that begins at position p gives its token in row i and column j the
    position (p, p + i, p + j); what follows begins at p + max(height, width).
    """
    parts, start = [], 0
    for run in runs:
        if isinstance(run, int):
            parts.append(torch.arange(start, start + run).expand(3, -1))
            start += run
        else:
            height, width = run
            grid = torch.meshgrid(torch.arange(1), torch.arange(height), torch.arange(width), indexing="ij")
            parts.append(torch.stack(grid).reshape(3, -1) + start)
            start += max(height, width)
    return torch.cat(parts, dim=1)
