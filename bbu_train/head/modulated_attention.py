"""Attention that looks around a box."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from bbu_train.types.batch import MemoryIndex

UNWILLING = -4.0  # how much less a query looks at text than at an image token in its box, at first
IMAGE, TEXT, NOTHING = 0, 1, 2  # what a memory entry is


class Gaze(nn.Module):
    """Says what is added to the attention of head h of query q to memory entry k (Gao et al. 2021, SMCA):

    -1/2 |(x_k - c_q - o_qh s_q) / (r_qh s_q)|^2 for an image token at x_k, and t_qh for text.

    c and s are centre and size of the query's box, of which a part smaller than a token counts as large as one; o, r
    and t are said by the query, and begin with the heads spread over the box. So a query looks at its box before it has
    learned anything, and what it learns moves with the box. Unlike SMCA's the looks of all heads are bound to one box.
    """

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.say = nn.Linear(d_model, 5 * num_heads)
        angles = 2 * torch.pi * torch.arange(num_heads) / num_heads
        offsets = torch.stack([angles.cos(), angles.sin()], dim=-1) / 4
        others = torch.tensor([math.log(0.3), math.log(0.3), UNWILLING]).expand(num_heads, 3)
        nn.init.zeros_(self.say.weight)
        with torch.no_grad():
            self.say.bias.copy_(torch.cat([offsets, others], dim=-1).flatten())

    def forward(
        self,
        queries: Float[Tensor, "samples queries model"],
        boxes_cxcywh: Float[Tensor, "samples queries 4"],
        token_sizes: Float[Tensor, "samples 2"],
    ) -> Float[Tensor, "samples queries heads 5"]:
        """c + o s and r s, both of x and y and in parts of the picture, and t."""
        offsets, scales, text = self.say(queries).float().unflatten(-1, (self.num_heads, 5)).split([2, 2, 1], dim=-1)
        centers, sizes = boxes_cxcywh[:, :, None].split(2, dim=-1)
        sizes = torch.maximum(sizes, token_sizes[:, None, None])
        return torch.cat([centers + offsets * sizes, scales.exp() * sizes, text], dim=-1)


class Places(NamedTuple):
    """What a gaze has to know of a memory: x and y of each entry, 0 for text, and which of IMAGE, TEXT and NOTHING it
    is; and width and height of an image token. Both in parts of the picture."""

    entries: Float[Tensor, "samples memory 3"]
    token_sizes: Float[Tensor, "samples 2"]


def places(index: MemoryIndex) -> Places:
    kinds = torch.cat(
        [torch.where(index.vision_mask, IMAGE, NOTHING), torch.where(index.text_mask, TEXT, NOTHING)], dim=1
    )
    centers = pad(index.vision_centers, (0, 0, 0, index.text.shape[1]))
    return Places(torch.cat([centers, kinds[..., None]], dim=-1), index.vision_sizes)


def look(
    queries: Float[Tensor, "samples heads queries size"],
    keys: Float[Tensor, "samples heads memory size"],
    values: Float[Tensor, "samples heads memory size"],
    looks: Float[Tensor, "samples queries heads 5"],
    entries: Float[Tensor, "samples memory 3"],
) -> Float[Tensor, "samples heads queries size"]:
    """softmax(Q K^T / sqrt(size) + what `looks` say of `entries`) V. What is nothing is not read.

    On a GPU in half precision without a number for each pair of query and entry in memory: there are hundreds of
    millions, and as tensors they would take most of the time of a step.
    """
    if queries.is_cuda and queries.dtype != torch.float32:
        from bbu_train.head.modulated_attention_function import gaze_attention  # Triton comes with torch for GPUs only

        return gaze_attention(queries, keys, values, looks, entries)
    return scaled_dot_product_attention(queries, keys, values, bias(looks, entries))


def bias(
    looks: Float[Tensor, "samples queries heads 5"], entries: Float[Tensor, "samples memory 3"]
) -> Float[Tensor, "samples heads queries memory"]:
    """What is added, of each pair."""
    middle_x, middle_y, spread_x, spread_y, text = looks.transpose(1, 2)[..., None].unbind(-2)
    x, y, kind = entries[:, None, None].unbind(-1)
    apart = ((x - middle_x) / spread_x).square() + ((y - middle_y) / spread_y).square()
    return torch.where(kind == IMAGE, -apart / 2, text).masked_fill(kind == NOTHING, -torch.inf)
