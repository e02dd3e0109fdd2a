"""Anchor boxes of queries: where they start, and how a query is told its own box (Liu et al. 2022, DAB-DETR)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bbu_train.ops.sine_encoding import sine_encoding
from bbu_train.types.batch import MemoryIndex

EPSILON = 1e-4  # cxcywh stays this far from 0 and 1, so that its logit is finite
ANCHOR_TOKENS = 2  # width and height of an initial anchor, in image tokens
MAX_CYCLES = 20  # periods of the fastest sine over a picture: enough to separate boxes that are one patch apart


def split_tokens(index: MemoryIndex, split: int) -> MemoryIndex:
    """Return the index of a grid in which each image token is split into `split` x `split` parts.

    The features of the parts of token i must lie at i * split^2, ..., i * split^2 + split^2 - 1, row by row.
    """
    part_offsets = (torch.arange(split, device=index.vision.device) + 0.5) / split - 0.5
    y, x = torch.meshgrid(part_offsets, part_offsets, indexing="ij")
    offsets = torch.stack([x, y], dim=-1).view(-1, 2) * index.vision_sizes[:, None]
    parts = torch.arange(split**2, device=index.vision.device)
    return MemoryIndex(
        vision=(index.vision[..., None] * split**2 + parts).flatten(1),
        vision_mask=index.vision_mask.repeat_interleave(split**2, dim=1),
        vision_centers=(index.vision_centers[:, :, None] + offsets[:, None]).flatten(1, 2),
        text=index.text,
        text_mask=index.text_mask,
        text_positions=index.text_positions,
    )


def inverse_sigmoid(boxes_cxcywh: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Return the logits of boxes, which are first clamped to [EPSILON, 1 - EPSILON]."""
    return boxes_cxcywh.clamp(EPSILON, 1 - EPSILON).logit()


def anchor_logits(index: MemoryIndex) -> Float[Tensor, "samples vision 4"]:
    """Return the initial anchor around each image token, before the sigmoid."""
    sizes = (ANCHOR_TOKENS * index.vision_sizes).clamp(max=0.9)[:, None].expand_as(index.vision_centers)
    return inverse_sigmoid(torch.cat([index.vision_centers, sizes], dim=-1))


def topk_tokens(
    scores: Float[Tensor, "samples vision"], mask: Bool[Tensor, "samples vision"], num_queries: int
) -> Int[Tensor, "samples queries"]:
    """Return the tokens with the highest scores of each picture, best first.

    A picture with fewer tokens than queries repeats them in the same order.
    """
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(num_queries, device=scores.device) % mask.sum(dim=1, keepdim=True)
    return order.gather(1, ranks)


def nearest_tokens(boxes_cxcywh: Float[Tensor, "samples boxes 4"], index: MemoryIndex) -> Int[Tensor, "samples boxes"]:
    """Return the image token whose centre is closest to the centre of each box."""
    distances = (boxes_cxcywh[:, :, None, :2] - index.vision_centers[:, None]).square().sum(-1)
    return distances.masked_fill(~index.vision_mask[:, None], torch.inf).argmin(dim=-1)


def gather_tokens(
    values: Float[Tensor, "samples vision size"], tokens: Int[Tensor, "samples n"]
) -> Float[Tensor, "samples n size"]:
    """Return the values at `tokens`, the positions of image tokens in their picture."""
    return values.gather(1, tokens[..., None].expand(-1, -1, values.shape[-1]))


def box_sine_encoding(boxes_cxcywh: Float[Tensor, "*n 4"], d_model: int) -> Float[Tensor, "*n encoding"]:
    """Encode each of the four numbers of a box with `d_model / 2` sines, 2 `d_model` in all (DAB-DETR)."""
    return sine_encoding(2 * torch.pi * MAX_CYCLES * boxes_cxcywh, d_model // 2).flatten(-2)
