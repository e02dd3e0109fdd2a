"""Which query answers for which object."""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bbu_train.errors import InputError
from bbu_train.ops import boxes
from bbu_train.ops.compile import compile_dynamic
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Detections

WORST = 1e6  # stands in for a cost that is not finite, which no solver takes; the loss itself then stops the run


class Matcher:
    """The cheapest one-to-one assignment of a sample's objects to its queries (Carion et al. 2020).

    cost = l1 ||b - b^||_1 + giou (1 - GIoU(b, b^)) + objectness (1 - sigma(o)), boxes in normalised cxcywh.
    The weights are the matcher's own: sweeping a loss weight must not quietly change the assignment.
    """

    def __init__(self, l1: float, giou: float, objectness: float, compile: bool):
        self.l1 = l1
        self.giou = giou
        self.objectness = objectness
        self.costs = compile_dynamic(costs) if compile else costs

    @torch.no_grad()
    def __call__(self, detections: Detections, batch: Batch) -> Int[Tensor, "layers objects"]:
        """The query of each object, for each decoder layer.

        On a GPU the host does not wait for it: it would have nothing left to give to the device for 20 ms afterwards.
        """
        num_queries = detections.objectness_logits.shape[-1]
        for sample_id, num_objects in zip(batch.sample_ids, batch.objects_per_sample, strict=True):
            if num_objects > num_queries:
                raise InputError(
                    f"{sample_id} has {num_objects} objects and the head has {num_queries} queries. Raise "
                    "head.num_queries."
                )
        said = detections.boxes_cxcywh, detections.objectness_logits
        costs = self.costs(*said, batch.sample_of_object, batch.boxes_cxcywh, self.l1, self.giou, self.objectness)
        if costs.is_cuda:
            from bbu_train.loss import assignment_kernel  # Triton comes with torch for GPUs only

            return assignment_kernel.assign(costs, batch.sample_of_object, len(batch.sample_ids))
        return _assigned(costs, batch)


def _assigned(costs: Float[Tensor, "layers objects queries"], batch: Batch) -> Int[Tensor, "layers objects"]:
    queries, start = torch.zeros(costs.shape[:2], dtype=torch.long), 0
    for num_objects in batch.objects_per_sample:
        for layer, cost in enumerate(costs[:, start : start + num_objects].numpy()):
            objects, columns = linear_sum_assignment(cost)
            queries[layer, start + torch.from_numpy(objects)] = torch.from_numpy(columns)
        start += num_objects
    return queries


def costs(
    boxes_cxcywh: Float[Tensor, "layers samples queries 4"],
    objectness_logits: Float[Tensor, "layers samples queries"],
    sample_of_object: Int[Tensor, "objects"],
    true_cxcywh: Float[Tensor, "objects 4"],
    weight_l1: float,
    weight_giou: float,
    weight_objectness: float,
) -> Float[Tensor, "layers objects queries"]:
    """The cost of every query of an object's own sample, finite in any case."""
    # 1. What the queries of each object's sample say, and what is true.
    said = boxes_cxcywh[:, sample_of_object]
    objectness = objectness_logits[:, sample_of_object].sigmoid()
    true = true_cxcywh[:, None]
    # 2. The three terms.
    l1 = (said - true).abs().sum(-1)
    giou = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(said), boxes.cxcywh_to_xyxy(true))
    cost = weight_l1 * l1 + weight_giou * (1 - giou) + weight_objectness * (1 - objectness)
    # 3. What is not finite is the last choice.
    return cost.nan_to_num(nan=WORST, posinf=WORST, neginf=WORST)
