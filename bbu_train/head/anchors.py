"""Boxes as places of queries: where they begin, and what a query is told of its own."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bbu_train.ops.sine_encoding import sine_encoding
from bbu_train.types.batch import MemoryIndex

SMALLEST = 1e-4  # of a width, a height or a distance from the rim, so that a logit stays finite
TOKENS_WIDE = 2  # the box that stands for an image token before anything is learned
CYCLES = 20  # of the fastest sine over a picture: enough to tell apart places that are a patch from each other


def finer(index: MemoryIndex, split: int) -> MemoryIndex:
    """Each image token as `split` x `split` parts, whose features lie one after another where the token's lay."""
    steps = (torch.arange(split, device=index.vision.device) + 0.5) / split - 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    inside = torch.stack([x, y], dim=-1).view(-1, 2) * index.vision_sizes[:, None]
    parts = torch.arange(split**2, device=index.vision.device)
    return MemoryIndex(
        vision=(index.vision[..., None] * split**2 + parts).flatten(1),
        vision_mask=index.vision_mask.repeat_interleave(split**2, dim=1),
        vision_centers=(index.vision_centers[:, :, None] + inside[:, None]).flatten(1, 2),
        text=index.text,
        text_mask=index.text_mask,
        text_positions=index.text_positions,
    )


def logits(boxes_cxcywh: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    return boxes_cxcywh.clamp(SMALLEST, 1 - SMALLEST).logit()


def of_tokens(index: MemoryIndex) -> Float[Tensor, "samples vision 4"]:
    """A box around each image token, before the sigmoid."""
    sizes = (TOKENS_WIDE * index.vision_sizes).clamp(max=0.9)[:, None].expand_as(index.vision_centers)
    return logits(torch.cat([index.vision_centers, sizes], dim=-1))


def best(
    scores: Float[Tensor, "samples vision"], mask: Bool[Tensor, "samples vision"], num_queries: int
) -> Int[Tensor, "samples queries"]:
    """The tokens of each picture with the highest scores; where it has too few, they come again in the same order."""
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(num_queries, device=scores.device) % mask.sum(dim=1, keepdim=True)
    return order.gather(1, ranks)


def nearest(boxes_cxcywh: Float[Tensor, "samples boxes 4"], index: MemoryIndex) -> Int[Tensor, "samples boxes"]:
    """The image token whose centre is closest to that of each box."""
    apart = (boxes_cxcywh[:, :, None, :2] - index.vision_centers[:, None]).square().sum(-1)
    return apart.masked_fill(~index.vision_mask[:, None], torch.inf).argmin(dim=-1)


def take(values: Float[Tensor, "samples vision size"], chosen: Int[Tensor, "samples n"]) -> Tensor:
    """Those of the chosen tokens."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))


def wave(boxes_cxcywh: Float[Tensor, "*n 4"], d_model: int) -> Float[Tensor, "*n wide"]:
    """Sines of all four numbers of a box, `d_model / 2` of each (Liu et al. 2022, DAB-DETR)."""
    return sine_encoding(2 * torch.pi * CYCLES * boxes_cxcywh, d_model // 2).flatten(-2)
