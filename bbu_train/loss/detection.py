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
"""A loss of `bbu_train.loss.objectness`: from logits, a mask of matched queries, and IoU to the loss of each query."""


def box_losses(
    pred_cxcywh: Float[Tensor, "*layers 4"], true_cxcywh: Float[Tensor, "*#layers 4"]
) -> tuple[Float[Tensor, "*layers"], Float[Tensor, "*layers"], Float[Tensor, "*layers"]]:
    """Return ||b - b^||_1, 1 - GIoU(b, b^) and IoU of each pair of normalised boxes. The IoU has no gradient."""
    iou, giou = boxes.paired_ious(boxes.cxcywh_to_xyxy(pred_cxcywh), boxes.cxcywh_to_xyxy(true_cxcywh))
    return (pred_cxcywh - true_cxcywh).abs().sum(-1), 1 - giou, iou.detach()


def scatter_to_queries(
    values: Shaped[Tensor, "*layers objects"],
    query_of_object: Int[Tensor, "*layers objects"],
    sample_of_object: Int[Tensor, "objects"],
    num_samples: int,
    num_queries: int,
) -> Shaped[Tensor, "*layers samples queries"]:
    """Put the value of each object at its matched query; all other queries get 0 or False."""
    zeros = values.new_zeros(*query_of_object.shape[:-1], num_samples * num_queries)
    flat_queries = sample_of_object * num_queries + query_of_object
    return zeros.scatter(-1, flat_queries, values).unflatten(-1, (num_samples, num_queries))


def layer_sums(
    boxes_cxcywh: Float[Tensor, "layers samples queries 4"],
    objectness_logits: Float[Tensor, "layers samples queries"],
    query_of_object: Int[Tensor, "layers objects"],
    sample_of_object: Int[Tensor, "objects"],
    true_cxcywh: Float[Tensor, "objects 4"],
    annotated: Bool[Tensor, "samples"],
    objectness: ObjectnessLoss,
) -> tuple[Float[Tensor, "layers"], Float[Tensor, "layers"], Float[Tensor, "layers"]]:
    """Return the sums of box L1, box GIoU and objectness of each decoder layer.

    `query_of_object[i, j]` is the query of object j in layer i. Objectness is summed over all queries of annotated
    samples.
    """
    num_layers, num_samples, num_queries = objectness_logits.shape
    layer = torch.arange(num_layers, device=query_of_object.device)[:, None]
    pred_cxcywh = boxes_cxcywh[layer, sample_of_object, query_of_object]
    matching = query_of_object, sample_of_object, num_samples, num_queries
    is_object = scatter_to_queries(torch.ones_like(query_of_object, dtype=torch.bool), *matching)
    l1, giou, iou = box_losses(pred_cxcywh, true_cxcywh)
    losses = objectness(objectness_logits, is_object, scatter_to_queries(iou, *matching))
    return l1.sum(-1), giou.sum(-1), (losses * annotated[:, None]).sum((-2, -1))


def denoising_sums(
    boxes_cxcywh: Float[Tensor, "layers objects groups 4"],
    objectness_logits: Float[Tensor, "layers objects groups 2"],
    true_cxcywh: Float[Tensor, "objects 4"],
    objectness: ObjectnessLoss,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the sums of box L1, box GIoU and objectness of `DenoisingOutputs`, over layers; means over groups.

    Of each pair of noised boxes the first is an object and the second is not.
    """
    num_groups = boxes_cxcywh.shape[2]
    l1, giou, iou = box_losses(boxes_cxcywh, true_cxcywh[:, None])
    is_object = torch.arange(2, device=iou.device) == 0
    losses = objectness(objectness_logits, is_object, iou[..., None])
    return l1.sum() / num_groups, giou.sum() / num_groups, losses.sum() / num_groups


def dense_sums(
    boxes_cxcywh: Float[Tensor, "samples vision 4"],
    objectness_logits: Float[Tensor, "samples vision"],
    objects: Int[Tensor, "samples vision"],
    mask: Bool[Tensor, "samples vision"],
    true_cxcywh: Float[Tensor, "objects 4"],
    annotated: Bool[Tensor, "samples"],
    objectness: ObjectnessLoss,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the sums of box L1, box GIoU and objectness of `DenseOutputs`.

    Each term is a mean over the tokens of an object, summed over objects. Objectness also sums over all tokens without
    an object, of annotated samples.
    """
    is_object, num_bins = objects >= 0, len(true_cxcywh) + 1  # the last bin is for tokens without an object
    bins = objects % num_bins
    num_tokens = true_cxcywh.new_zeros(num_bins).index_add(0, bins.flatten(), is_object.flatten().float())
    weight = is_object / num_tokens[bins].clamp(min=1)
    token_cxcywh = torch.cat([true_cxcywh, true_cxcywh.new_full((1, 4), 0.5)])[bins]
    l1, giou, iou = box_losses(boxes_cxcywh, token_cxcywh)
    losses = objectness(objectness_logits, is_object, iou)
    losses = losses * torch.where(is_object, weight, 1) * (mask & annotated[:, None])
    return (weight * l1).sum(), (weight * giou).sum(), losses.sum()


def caption_sum(detections: Detections, query_of_object: Int[Tensor, "objects"], batch: Batch) -> Float[Tensor, ""]:
    """Average the token cross entropy within each caption, then over the captions of a sample, and sum over samples.

    Of a caption that is longer than the head writes, only the tokens that it writes count.

    A batch without objects computes the loss of one dummy caption times 0, so that every rank runs the same modules.
    """
    samples, ids = batch.sample_of_object, batch.caption_ids
    if len(samples) == 0:
        dummy = query_of_object.new_zeros(1)
        return 0 * detections.caption_losses(dummy, dummy, query_of_object.new_zeros(1, 1), 1).sum()
    losses = detections.caption_losses(samples, query_of_object, ids, batch.ground_truth.max_objects)
    per_object = losses.sum(-1) / (ids[:, : losses.shape[1]] >= 0).sum(-1)
    num_objects = one_hot(samples, len(batch.sample_ids)).sum(0)[samples]
    return (per_object / num_objects).sum()
