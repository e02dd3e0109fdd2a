"""Which object each image token answers for, where every token learns to find one (Zong et al. 2023, Co-DETR)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CENTRAL = 0.5  # of a box's width and height: tokens there see most of the object, and few of them also lie in another


def object_of_token(
    centers: Float[Tensor, "samples vision 2"],
    mask: Bool[Tensor, "samples vision"],
    true_cxcywh: Float[Tensor, "objects 4"],
    sample_of_object: Int[Tensor, "objects"],
) -> Int[Tensor, "samples vision"]:
    """The smallest object of its picture in whose central part a token's centre lies; -1 for none (Tian et al. 2019,
    FCOS). The token nearest to the centre of an object is its own before all, so that small objects have one, too."""
    apart = (centers[sample_of_object] - true_cxcywh[:, None, :2]).abs()
    is_real = mask[sample_of_object]
    distance = apart.square().sum(-1).masked_fill(~is_real, torch.inf)
    is_nearest = distance == distance.amin(dim=1, keepdim=True)
    is_inside = (apart < CENTRAL / 2 * true_cxcywh[:, None, 2:]).all(-1) & is_real
    area = true_cxcywh[:, 2:].prod(-1, keepdim=True)  # at most 1
    rank = torch.where(is_nearest, area - 1, area).masked_fill(~is_inside & ~is_nearest, torch.inf)
    row = sample_of_object[:, None].expand_as(rank)
    least = rank.new_full(mask.shape, torch.inf).scatter_reduce(0, row, rank, "amin")
    wins = rank.isfinite() & (rank == least[sample_of_object])
    number = torch.arange(len(rank), device=rank.device)[:, None].expand_as(rank).masked_fill(~wins, -1)
    return number.new_full(mask.shape, -1).scatter_reduce(0, row, number, "amax")
