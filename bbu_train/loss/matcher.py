"""Which query answers for which object."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bbu_train import boxes
from bbu_train.compiled import compiled
from bbu_train.errors import InputError
from bbu_train.transfer import to_host
from bbu_train.types import Batch, Detections

WORST = 1e6  # stands in for a cost that is not finite, which scipy refuses; the loss itself then stops the run


class Matcher:
    """The cheapest one-to-one assignment of a sample's objects to its queries (Carion et al. 2020).

    cost = l1 ||b - b^||_1 + giou (1 - GIoU(b, b^)) + objectness (1 - sigma(o)), boxes in normalised cxcywh.
    The weights are the matcher's own: sweeping a loss weight must not quietly change the assignment.
    """

    def __init__(self, l1: float, giou: float, objectness: float, compile: bool):
        self.l1 = l1
        self.giou = giou
        self.objectness = objectness
        self.costs = compiled(costs) if compile else costs

    def __call__(self, detections: Detections, batch: Batch) -> Int[Tensor, "layers objects"]:
        """The query of each object, for each decoder layer."""
        return self.begin(detections, batch)()

    @torch.no_grad()
    def begin(self, detections: Detections, batch: Batch) -> Callable[[], Int[Tensor, "layers objects"]]:
        """Start to compute all costs, in one batch on the device, and to bring them to the host in one transfer.

        What comes back waits for them, and solves. What the device is given in between, it does meanwhile.
        """
        said = detections.boxes_cxcywh, detections.objectness_logits
        costs = self.costs(*said, batch.sample_of_object, batch.boxes_cxcywh, self.l1, self.giou, self.objectness)
        arrived = to_host(costs)
        return lambda: self._solve(arrived().numpy(), batch).to(costs.device, non_blocking=True)

    def _solve(self, costs: np.ndarray, batch: Batch) -> Int[Tensor, "layers objects"]:
        costs = np.nan_to_num(costs, nan=WORST, posinf=WORST, neginf=WORST)
        num_layers, num_objects, num_queries = costs.shape
        queries, start = torch.zeros(num_layers, num_objects, dtype=torch.long), 0
        for sample_id, num_own in zip(batch.sample_ids, batch.objects_per_sample, strict=True):
            if num_own > num_queries:
                raise InputError(
                    f"{sample_id} has {num_own} objects and the head has {num_queries} queries. Raise head.num_queries."
                )
            for layer, cost in enumerate(costs[:, start : start + num_own]):
                objects, columns = linear_sum_assignment(cost)
                queries[layer, start + torch.from_numpy(objects)] = torch.from_numpy(columns)
            start += num_own
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
    """The cost of every query of an object's own sample."""
    # 1. What the queries of each object's sample say, and what is true.
    said = boxes_cxcywh[:, sample_of_object]
    objectness = objectness_logits[:, sample_of_object].sigmoid()
    true = true_cxcywh[:, None]
    # 2. The three terms.
    l1 = (said - true).abs().sum(-1)
    giou = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(said), boxes.cxcywh_to_xyxy(true))
    return weight_l1 * l1 + weight_giou * (1 - giou) + weight_objectness * (1 - objectness)
