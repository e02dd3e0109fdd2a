"""Match objects to queries."""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bbu_train.errors import InputError
from bbu_train.loss.language import check_weights
from bbu_train.ops import boxes
from bbu_train.ops.compile import compile_dynamic
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Detections

MAX_COST = 1e6  # replaces costs that are not finite, which solvers reject; the engine then stops at the same loss


class Matcher:
    """Hungarian matching: the cheapest one-to-one assignment of a sample's objects to its queries (Carion et al. 2020).

    cost = l1 ||b - b^||_1 + giou (1 - GIoU(b, b^)) + objectness (1 - sigma(o)), boxes in normalised cxcywh.
    The weights are separate from those of the loss, so that sweeping a loss weight does not change the assignment.
    """

    def __init__(self, l1: float, giou: float, objectness: float, compile: bool) -> None:
        check_weights({"matcher.l1": l1, "matcher.giou": giou, "matcher.objectness": objectness})
        self.l1 = l1
        self.giou = giou
        self.objectness = objectness
        self.costs = compile_dynamic(matching_costs) if compile else matching_costs

    @torch.no_grad()
    def __call__(self, detections: Detections, batch: Batch) -> Int[Tensor, "layers objects"]:
        """Return the query of each object, for each decoder layer. Raise InputError if a sample has too few queries.

        On a GPU the assignment is solved there: a host that waited for the costs would leave the device idle for 20 ms.
        """
        num_queries = detections.objectness_logits.shape[-1]
        for sample_id, num_objects in zip(batch.sample_ids, batch.objects_per_sample, strict=True):
            if num_objects > num_queries:
                raise InputError(
                    f"{sample_id} has {num_objects} objects and the head has {num_queries} queries. Give "
                    f"head.num_queries={max(batch.objects_per_sample)} or more."
                )
        predictions = detections.boxes_cxcywh, detections.objectness_logits
        truth = batch.sample_of_object, batch.boxes_cxcywh
        costs = self.costs(*predictions, *truth, self.l1, self.giou, self.objectness)
        if costs.is_cuda:
            from bbu_train.loss import assignment_kernel  # only the GPU builds of torch come with Triton

            return assignment_kernel.assign(costs, batch.sample_of_object, len(batch.sample_ids))
        return _assign_on_cpu(costs, batch)


def _assign_on_cpu(costs: Float[Tensor, "layers objects queries"], batch: Batch) -> Int[Tensor, "layers objects"]:
    query_of_object, start = torch.zeros(costs.shape[:2], dtype=torch.long), 0
    for num_objects in batch.objects_per_sample:
        for layer, cost in enumerate(costs[:, start : start + num_objects].numpy()):
            objects, columns = linear_sum_assignment(cost)
            query_of_object[layer, start + torch.from_numpy(objects)] = torch.from_numpy(columns)
        start += num_objects
    return query_of_object


def matching_costs(
    boxes_cxcywh: Float[Tensor, "layers samples queries 4"],
    objectness_logits: Float[Tensor, "layers samples queries"],
    sample_of_object: Int[Tensor, "objects"],
    true_cxcywh: Float[Tensor, "objects 4"],
    weight_l1: float,
    weight_giou: float,
    weight_objectness: float,
) -> Float[Tensor, "layers objects queries"]:
    """Return the cost of each object with every query of its sample. Costs that are not finite become MAX_COST."""
    # 1. Each object beside all queries of its sample.
    pred = boxes_cxcywh[:, sample_of_object]
    objectness = objectness_logits[:, sample_of_object].sigmoid()
    true = true_cxcywh[:, None]
    # 2. The three terms.
    l1 = (pred - true).abs().sum(-1)
    giou = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(pred), boxes.cxcywh_to_xyxy(true))
    cost = weight_l1 * l1 + weight_giou * (1 - giou) + weight_objectness * (1 - objectness)
    # 3. Costs that are not finite are the last choice.
    return cost.nan_to_num(nan=MAX_COST, posinf=MAX_COST, neginf=MAX_COST)
