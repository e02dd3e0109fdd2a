"""Sums of the detection losses, term by term."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from bbu_train import boxes
from bbu_train.types import Batch, Detections


def box_sums(
    said: Float[Tensor, "objects 4"], true: Float[Tensor, "objects 4"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of ||b - b^||_1 and sum of 1 - GIoU(b, b^) over matched pairs, both of normalised cxcywh boxes."""
    giou = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(said), boxes.cxcywh_to_xyxy(true))
    return (said - true).abs().sum(), (1 - giou).sum()


def focal_sum(
    logits: Float[Tensor, "samples queries"],
    is_object: Bool[Tensor, "samples queries"],
    annotated: Bool[Tensor, "samples"],
    alpha: float,
    gamma: float,
) -> Float[Tensor, ""]:
    """Sum of -a_t (1 - p_t)^gamma log p_t over all queries of annotated samples (Lin et al. 2017).

    p_t is the probability of what is true, a_t is alpha for objects and 1 - alpha for the rest.
    """
    signed = torch.where(is_object, logits, -logits)  # p_t is its sigmoid
    weight = torch.where(is_object, alpha, 1 - alpha) * (gamma * logsigmoid(-signed)).exp()
    return -(weight * logsigmoid(signed) * annotated[:, None]).sum()


def matched_mask(queries: Int[Tensor, "objects"], batch: Batch, num_queries: int) -> Bool[Tensor, "samples queries"]:
    """True for the queries that answer for an object."""
    mask = torch.zeros(len(batch.sample_ids), num_queries, dtype=torch.bool, device=queries.device)
    return mask.index_put((batch.sample_of_object, queries), torch.ones_like(queries, dtype=torch.bool))


def caption_sum(detections: Detections, queries: Int[Tensor, "objects"], batch: Batch) -> Float[Tensor, ""]:
    """Sum over samples of the mean over its objects of the mean token cross entropy.

    Without any object one caption is made all the same and counts nothing, so that every rank runs the same modules.
    """
    samples, ids = batch.sample_of_object, batch.caption_ids
    if len(samples) == 0:
        nothing = queries.new_zeros(1)
        return 0 * detections.caption_losses(nothing, nothing, queries.new_zeros(1, 1), 1).sum()
    most = max(batch.objects_per_sample)
    per_object = detections.caption_losses(samples, queries, ids, most).sum(-1) / (ids >= 0).sum(-1)
    num_objects = one_hot(samples, len(batch.sample_ids)).sum(0)[samples]
    return (per_object / num_objects).sum()
