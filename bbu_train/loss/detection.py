"""Sums of the detection losses, term by term."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import one_hot

from bbu_train.ops import boxes
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Detections

ObjectnessLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits, which of them answer for an object, and IoU: one of `objectness`."""


def box_losses(
    said: Float[Tensor, "*layers 4"], true: Float[Tensor, "*#layers 4"]
) -> tuple[Float[Tensor, "*layers"], Float[Tensor, "*layers"], Float[Tensor, "*layers"]]:
    """||b - b^||_1 and 1 - GIoU(b, b^) of each pair of normalised cxcywh boxes, and its IoU, which has no gradient."""
    iou, giou = boxes.paired_ious(boxes.cxcywh_to_xyxy(said), boxes.cxcywh_to_xyxy(true))
    return (said - true).abs().sum(-1), 1 - giou, iou.detach()


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
    l1, giou, iou = box_losses(said, true_cxcywh)
    losses = objectness(objectness_logits, is_object, on_queries(iou, *where))
    return l1.sum(-1), giou.sum(-1), (losses * annotated[:, None]).sum((-2, -1))


def denoised_sums(
    boxes_cxcywh: Float[Tensor, "layers objects groups 4"],
    objectness_logits: Float[Tensor, "layers objects groups 2"],
    true_cxcywh: Float[Tensor, "objects 4"],
    objectness: ObjectnessLoss,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The same three of what was made of noised boxes (`DenoisingOutputs`), in all layers: means over the groups."""
    num_groups = boxes_cxcywh.shape[2]
    l1, giou, iou = box_losses(boxes_cxcywh, true_cxcywh[:, None])
    is_object = torch.arange(2, device=iou.device) == 0
    losses = objectness(objectness_logits, is_object, iou[..., None])
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
    """The same three of each image token (`DenseOutputs`): for each object means over its tokens, and the objectness of
    all other tokens of annotated samples."""
    is_object, num_places = objects >= 0, len(true_cxcywh) + 1  # the last is for tokens without an object
    place = objects % num_places
    num_tokens = true_cxcywh.new_zeros(num_places).index_add(0, place.flatten(), is_object.flatten().float())
    share = is_object / num_tokens[place].clamp(min=1)
    true = torch.cat([true_cxcywh, true_cxcywh.new_full((1, 4), 0.5)])[place]
    l1, giou, iou = box_losses(boxes_cxcywh, true)
    losses = objectness(objectness_logits, is_object, iou)
    losses = losses * torch.where(is_object, share, 1) * (mask & annotated[:, None])
    return (share * l1).sum(), (share * giou).sum(), losses.sum()


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
