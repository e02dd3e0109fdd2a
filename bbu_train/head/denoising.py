"""True boxes with noise, from which a decoder learns to find them again (Li et al. 2022, DN-DETR)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from bbu_train.head.layers import rank_in_sample
from bbu_train.ops import boxes


def noised(
    boxes_cxcywh: Float[Tensor, "objects 4"], noise: Float[Tensor, "objects 4"], num_groups: int
) -> Float[Tensor, "objects groups 2 4"]:
    """Each box `num_groups` times with little noise and as often with much (Zhang et al. 2022, DINO).

    Each side of a box moves by up to half of its length, or by half to all of it, in either direction. Where to is
    quasi-random: u_n = frac(s + n a) with a_j = g^-j and g^5 = g + 1, points that fill the unit cube evenly (Roberts
    2018), the first of them from the s of each object that is its `noise` (`Encoded`): the same in every layout, on
    every rank and after a resume.
    """
    ratio = 1.1673039782614187 ** -torch.arange(1, 5, device=noise.device, dtype=noise.dtype)
    n = torch.arange(1, 2 * num_groups + 1, device=noise.device).view(num_groups, 2, 1)
    moves = 2 * ((noise[:, None, None] + n * ratio) % 1) - 1  # [-1, 1)
    moves[:, :, 1] += torch.where(moves[:, :, 1] < 0, -1, 1)
    half = boxes_cxcywh[:, 2:].repeat(1, 2)[:, None, None] / 2
    moved = (boxes.cxcywh_to_xyxy(boxes_cxcywh)[:, None, None] + moves * half).clamp(0, 1)
    low, high = moved[..., :2], moved[..., 2:]
    return boxes.xyxy_to_cxcywh(torch.cat([torch.minimum(low, high), torch.maximum(low, high)], dim=-1))


class Slots(NamedTuple):
    """Where the two noised boxes of each object lie: in the row of their sample, beside those of its other objects.

    A row has `most` places, and at least one. `mask` says which slots are taken; all, where none is, for attention has
    to read something.
    """

    samples: Int[Tensor, "objects"]
    ranks: Int[Tensor, "objects"]
    mask: Bool[Tensor, "samples slots"]

    def lay(self, values: Float[Tensor, "objects groups 2 size"]) -> Float[Tensor, "samples groups slots size"]:
        num_samples, num_slots = self.mask.shape
        rows = values.new_full((num_samples, num_slots // 2, *values.shape[1:]), 0.5)
        return rows.index_put((self.samples, self.ranks), values).transpose(1, 2).flatten(2, 3)

    def lift(
        self, rows: Float[Tensor, "layers samples groups slots size"]
    ) -> Float[Tensor, "layers objects groups 2 _"]:
        return rows.unflatten(3, (-1, 2)).transpose(2, 3)[:, self.samples, self.ranks]


def slots(sample_of_object: Int[Tensor, "objects"], num_samples: int, most: int) -> Slots:
    ranks = rank_in_sample(sample_of_object, num_samples)
    taken = torch.zeros(num_samples, max(1, most), dtype=torch.bool, device=ranks.device)
    taken = taken.index_put((sample_of_object, ranks), torch.ones_like(ranks, dtype=torch.bool))
    return Slots(sample_of_object, ranks, (taken | ~taken.any(dim=1, keepdim=True)).repeat_interleave(2, dim=1))


class Starts(NamedTuple):
    """Where queries begin. `mask` is False where there is none; None: all are there."""

    queries: Float[Tensor, "samples groups queries model"]
    boxes_logits: Float[Tensor, "samples groups queries 4"]
    mask: Bool[Tensor, "samples groups queries"] | None


def beside(starts: Starts, noised: Starts) -> Starts:
    """The group of queries that are all there and those of noised boxes, filled up to the same number: one pass of the
    decoder takes half the kernels of two, and it is the host that a small model waits for."""
    most = max(starts.queries.shape[2], noised.queries.shape[2])
    full = noised.mask.new_ones(starts.queries.shape[:3])

    def joined(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([pad(x, (0, 0, 0, most - x.shape[2])) for x in (one, other)], dim=1)

    mask = joined(full[..., None], noised.mask[..., None])[..., 0]
    return Starts(joined(starts.queries, noised.queries), joined(starts.boxes_logits, noised.boxes_logits), mask)
