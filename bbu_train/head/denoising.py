"""Inputs for contrastive denoising: true boxes with noise (Li et al. 2022, DN-DETR; Zhang et al. 2022, DINO)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from bbu_train.head.layers import rank_in_sample
from bbu_train.ops import boxes


def add_box_noise(
    boxes_cxcywh: Float[Tensor, "objects 4"], noise: Float[Tensor, "objects 4"], num_groups: int
) -> Float[Tensor, "objects groups 2 4"]:
    """Return `num_groups` pairs of noised copies of each box: index 0 with small noise, index 1 with large noise.

    Small noise moves each side of a box by up to half of its width or height, in either direction; large noise by half
    to all of it. Then the box is clipped to the picture. The shifts are quasi-random (Roberts 2018), so they fill the
    range evenly: copy n of a box shifts side j by frac(s_j + n g^-j), scaled to [-1, 1), where g^5 = g + 1 and the
    offset s is the object's `noise` (`Encoded`). So the shifts are the same in every batch layout, on every rank and
    after a resume.
    """
    ratio = 1.1673039782614187 ** -torch.arange(1, 5, device=noise.device, dtype=noise.dtype)
    n = torch.arange(1, 2 * num_groups + 1, device=noise.device).view(num_groups, 2, 1)
    shifts = 2 * ((noise[:, None, None] + n * ratio) % 1) - 1  # [-1, 1)
    shifts[:, :, 1] += torch.where(shifts[:, :, 1] < 0, -1, 1)
    half = boxes_cxcywh[:, 2:].repeat(1, 2)[:, None, None] / 2
    moved = (boxes.cxcywh_to_xyxy(boxes_cxcywh)[:, None, None] + shifts * half).clamp(0, 1)
    first, second = moved[..., :2], moved[..., 2:]
    return boxes.xyxy_to_cxcywh(torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=-1))


class Slots(NamedTuple):
    """Where the pair of noised boxes of each object lies in padded rows, one row for each sample.

    The k-th object of a sample (`ranks`) has slots 2 k and 2 k + 1. `mask` is False for padding, and all True for a
    sample without objects, because attention needs at least one key.
    """

    samples: Int[Tensor, "objects"]
    ranks: Int[Tensor, "objects"]
    mask: Bool[Tensor, "samples slots"]

    def pad(self, values: Float[Tensor, "objects groups 2 size"]) -> Float[Tensor, "samples groups slots size"]:
        """Lay values out in rows. Padding is 0.5."""
        num_samples, num_slots = self.mask.shape
        rows = values.new_full((num_samples, num_slots // 2, *values.shape[1:]), 0.5)
        return rows.index_put((self.samples, self.ranks), values).transpose(1, 2).flatten(2, 3)

    def unpad(
        self, rows: Float[Tensor, "layers samples groups slots size"]
    ) -> Float[Tensor, "layers objects groups 2 _"]:
        """Undo `pad`, for each layer."""
        return rows.unflatten(3, (-1, 2)).transpose(2, 3)[:, self.samples, self.ranks]


def build_slots(sample_of_object: Int[Tensor, "objects"], num_samples: int, max_objects: int) -> Slots:
    """Return slots for up to `max_objects` objects a sample, and for at least one."""
    ranks = rank_in_sample(sample_of_object, num_samples)
    is_used = torch.zeros(num_samples, max(1, max_objects), dtype=torch.bool, device=ranks.device)
    is_used = is_used.index_put((sample_of_object, ranks), torch.ones_like(ranks, dtype=torch.bool))
    return Slots(sample_of_object, ranks, (is_used | ~is_used.any(dim=1, keepdim=True)).repeat_interleave(2, dim=1))


class DecoderInputs(NamedTuple):
    """What enters the first decoder layer. `mask` is False for padding, and None if there is no padding."""

    queries: Float[Tensor, "samples groups queries model"]
    boxes_logits: Float[Tensor, "samples groups queries 4"]
    mask: Bool[Tensor, "samples groups queries"] | None


def concat_queries(matched: DecoderInputs, denoising: DecoderInputs) -> DecoderInputs:
    """Concatenate groups, padded to the same number of queries, so that one pass of the decoder serves both kinds.

    One pass launches half as many kernels as two, and the speed of a small model is limited by the host.
    """
    num_queries = max(matched.queries.shape[2], denoising.queries.shape[2])

    def concat(*tensors: Tensor) -> Tensor:
        return torch.cat([pad(tensor, (0, 0, 0, num_queries - tensor.shape[2])) for tensor in tensors], dim=1)

    matched_mask = denoising.mask.new_ones(matched.queries.shape[:3])
    mask = concat(matched_mask[..., None], denoising.mask[..., None])[..., 0]
    queries = concat(matched.queries, denoising.queries)
    return DecoderInputs(queries, concat(matched.boxes_logits, denoising.boxes_logits), mask)
