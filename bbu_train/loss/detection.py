"""Sums of the detection losses, term by term."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from bbu_train import boxes
from bbu_train.types import Batch, Detections


def box_sums(
    said: Float[Tensor, "*layers objects 4"], true: Float[Tensor, "objects 4"]
) -> tuple[Float[Tensor, "*layers"], Float[Tensor, "*layers"]]:
    """Sum of ||b - b^||_1 and sum of 1 - GIoU(b, b^) over matched pairs, both of normalised cxcywh boxes."""
    giou = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(said), boxes.cxcywh_to_xyxy(true))
    return (said - true).abs().sum((-2, -1)), (1 - giou).sum(-1)


def focal_sum(
    logits: Float[Tensor, "*layers samples queries"],
    is_object: Bool[Tensor, "*layers samples queries"],
    annotated: Bool[Tensor, "samples"],
    alpha: float,
    gamma: float,
) -> Float[Tensor, "*layers"]:
    """Sum of -a_t (1 - p_t)^gamma log p_t over all queries of annotated samples (Lin et al. 2017).

    p_t is the probability of what is true, a_t is alpha for objects and 1 - alpha for the rest.
    """
    signed = torch.where(is_object, logits, -logits)  # p_t is its sigmoid
    weight = torch.where(is_object, alpha, 1 - alpha) * (gamma * logsigmoid(-signed)).exp()
    return -(weight * logsigmoid(signed) * annotated[:, None]).sum((-2, -1))


def matched_mask(
    queries: Int[Tensor, "*layers objects"],
    sample_of_object: Int[Tensor, "objects"],
    num_samples: int,
    num_queries: int,
) -> Bool[Tensor, "*layers samples queries"]:
    """True for the queries that answer for an object."""
    mask = torch.zeros(*queries.shape[:-1], num_samples * num_queries, dtype=torch.bool, device=queries.device)
    return mask.scatter(-1, sample_of_object * num_queries + queries, True).unflatten(-1, (num_samples, num_queries))


def layer_sums(
    boxes_cxcywh: Float[Tensor, "layers samples queries 4"],
    objectness_logits: Float[Tensor, "layers samples queries"],
    queries: Int[Tensor, "layers objects"],
    sample_of_object: Int[Tensor, "objects"],
    true_cxcywh: Float[Tensor, "objects 4"],
    annotated: Bool[Tensor, "samples"],
    focal_alpha: float,
    focal_gamma: float,
) -> tuple[Float[Tensor, "layers"], Float[Tensor, "layers"], Float[Tensor, "layers"]]:
    """Box L1, box GIoU and objectness of each decoder layer, `queries[i, j]` being layer i's query of object j."""
    num_layers, num_samples, num_queries = objectness_logits.shape
    layer = torch.arange(num_layers, device=queries.device)[:, None]
    l1, giou = box_sums(boxes_cxcywh[layer, sample_of_object, queries], true_cxcywh)
    is_object = matched_mask(queries, sample_of_object, num_samples, num_queries)
    return l1, giou, focal_sum(objectness_logits, is_object, annotated, focal_alpha, focal_gamma)


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
