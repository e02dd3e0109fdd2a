"""Assign image tokens to objects for the dense auxiliary loss (Zong et al. 2023, Co-DETR)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CENTER_FRACTION = 0.5  # of a box's width and height: tokens there see most of the object, and few lie in two objects


def assign_tokens(
    centers: Float[Tensor, "samples vision 2"],
    mask: Bool[Tensor, "samples vision"],
    true_cxcywh: Float[Tensor, "objects 4"],
    sample_of_object: Int[Tensor, "objects"],
) -> Int[Tensor, "samples vision"]:
    """Return the index of each image token's object, or -1 for none.

    If the token's centre lies in the central part of several objects, the smallest object wins.
    This is FCOS's rule (Tian et al. 2019), with one addition so that small objects get a token too: the token nearest
    to the centre of an object belongs to that object first, whatever else lies around it.
    """
    offsets = (centers[sample_of_object] - true_cxcywh[:, None, :2]).abs()
    is_real = mask[sample_of_object]
    distances = offsets.square().sum(-1).masked_fill(~is_real, torch.inf)
    is_nearest = distances == distances.amin(dim=1, keepdim=True)
    is_inside = (offsets < CENTER_FRACTION / 2 * true_cxcywh[:, None, 2:]).all(-1) & is_real
    # The lowest rank wins. Areas are at most 1, so area - 1 puts nearest tokens first.
    area = true_cxcywh[:, 2:].prod(-1, keepdim=True)
    rank = torch.where(is_nearest, area - 1, area).masked_fill(~is_inside & ~is_nearest, torch.inf)
    row = sample_of_object[:, None].expand_as(rank)
    min_rank = rank.new_full(mask.shape, torch.inf).scatter_reduce(0, row, rank, "amin")
    is_winner = rank.isfinite() & (rank == min_rank[sample_of_object])
    objects = torch.arange(len(rank), device=rank.device)[:, None].expand_as(rank).masked_fill(~is_winner, -1)
    return objects.new_full(mask.shape, -1).scatter_reduce(0, row, objects, "amax")
