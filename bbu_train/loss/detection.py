"""Sums of the detection losses, term by term."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import one_hot

from bbu_train import boxes
from bbu_train.types import Batch, Detections

ObjectnessLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits, which of them answer for an object, and IoU: one of `objectness`."""


def box_sums(
    said: Float[Tensor, "*layers objects 4"], true: Float[Tensor, "objects 4"]
) -> tuple[Float[Tensor, "*layers"], Float[Tensor, "*layers"]]:
    """Sum of ||b - b^||_1 and sum of 1 - GIoU(b, b^) over matched pairs, both of normalised cxcywh boxes."""
    giou = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(said), boxes.cxcywh_to_xyxy(true))
    return (said - true).abs().sum((-2, -1)), (1 - giou).sum(-1)


def on_queries(
    values: Shaped[Tensor, "*layers objects"],
    queries: Int[Tensor, "*layers objects"],
    sample_of_object: Int[Tensor, "objects"],
    num_samples: int,
    num_queries: int,
) -> Shaped[Tensor, "*layers samples queries"]:
    """The value of each object at the query that answers for it, and 0, or False, at all others."""
    empty = values.new_zeros(*queries.shape[:-1], num_samples * num_queries)
    place = sample_of_object * num_queries + queries
    return empty.scatter(-1, place, values).unflatten(-1, (num_samples, num_queries))


def layer_sums(
    boxes_cxcywh: Float[Tensor, "layers samples queries 4"],
    objectness_logits: Float[Tensor, "layers samples queries"],
    queries: Int[Tensor, "layers objects"],
    sample_of_object: Int[Tensor, "objects"],
    true_cxcywh: Float[Tensor, "objects 4"],
    annotated: Bool[Tensor, "samples"],
    objectness: ObjectnessLoss,
) -> tuple[Float[Tensor, "layers"], Float[Tensor, "layers"], Float[Tensor, "layers"]]:
    """Box L1, box GIoU and objectness of each decoder layer, `queries[i, j]` being layer i's query of object j.

    Objectness is a sum over all queries of annotated samples.
    """
    num_layers, num_samples, num_queries = objectness_logits.shape
    layer = torch.arange(num_layers, device=queries.device)[:, None]
    said = boxes_cxcywh[layer, sample_of_object, queries]
    where = queries, sample_of_object, num_samples, num_queries
    is_object = on_queries(torch.ones_like(queries, dtype=torch.bool), *where)
    losses = objectness(objectness_logits, is_object, on_queries(_iou(said, true_cxcywh), *where))
    return *box_sums(said, true_cxcywh), (losses * annotated[:, None]).sum((-2, -1))


def denoised_sums(
    boxes_cxcywh: Float[Tensor, "layers objects groups 4"],
    objectness_logits: Float[Tensor, "layers objects groups 2"],
    true_cxcywh: Float[Tensor, "objects 4"],
    objectness: ObjectnessLoss,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The same three of what was made of noised boxes (`Denoised`), in all layers: means over the groups."""
    num_groups = boxes_cxcywh.shape[2]
    true = true_cxcywh[:, None].expand(-1, num_groups, -1)
    l1, giou = box_sums(boxes_cxcywh.flatten(1, 2), true.flatten(0, 1))
    is_object = torch.arange(2, device=true.device) == 0
    losses = objectness(objectness_logits, is_object, _iou(boxes_cxcywh, true)[..., None])
    return l1.sum() / num_groups, giou.sum() / num_groups, losses.sum() / num_groups


def dense_sums(
    boxes_cxcywh: Float[Tensor, "samples tokens 4"],
    objectness_logits: Float[Tensor, "samples tokens"],
    objects: Int[Tensor, "samples tokens"],
    mask: Bool[Tensor, "samples tokens"],
    true_cxcywh: Float[Tensor, "objects 4"],
    annotated: Bool[Tensor, "samples"],
    objectness: ObjectnessLoss,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The same three of each image token (`Dense`): for each object means over its tokens, and the objectness of all
    other tokens of annotated samples."""
    is_object, num_places = objects >= 0, len(true_cxcywh) + 1  # the last is for tokens without an object
    place = objects % num_places
    num_tokens = true_cxcywh.new_zeros(num_places).index_add(0, place.flatten(), is_object.flatten().float())
    share = is_object / num_tokens[place].clamp(min=1)
    true = torch.cat([true_cxcywh, true_cxcywh.new_full((1, 4), 0.5)])[place]
    giou = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(boxes_cxcywh), boxes.cxcywh_to_xyxy(true))
    losses = objectness(objectness_logits, is_object, _iou(boxes_cxcywh, true))
    losses = losses * torch.where(is_object, share, 1) * (mask & annotated[:, None])
    l1 = (boxes_cxcywh - true).abs().sum(-1)
    return (share * l1).sum(), (share * (1 - giou)).sum(), losses.sum()


def _iou(said: Float[Tensor, "*layers 4"], true: Float[Tensor, "*#layers 4"]) -> Float[Tensor, "*layers"]:
    return boxes.paired_iou(boxes.cxcywh_to_xyxy(said), boxes.cxcywh_to_xyxy(true)).detach()


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
