"""The assignment of objects to queries, against transformers' DETR code and against trying all assignments."""

from itertools import permutations

import pytest
import torch
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import HungarianMatcher, generalized_box_iou

from bbu_train.errors import InputError
from bbu_train.loss.matcher import Matcher
from bbu_train.runtime.seeds import generator

NO_BOXES = torch.zeros(0, 4)


def matcher_of(l1=5.0, giou=2.0, objectness=1.0) -> Matcher:
    return Matcher(l1, giou, objectness, compile=False)


def random_logits(name, *shape):
    return torch.from_numpy(generator("logits", name).standard_normal(shape, dtype="float32"))


def transformers_assignment(weights, boxes_cxcywh, objectness_logits, batch):
    """The query of each object, for one decoder layer, by transformers' matcher.

    Its class cost is -softmax(logits)[class]. For logits (o, 0) this is -sigmoid(o), the cost of `Matcher` - 1.
    """
    logits = torch.stack([objectness_logits, torch.zeros_like(objectness_logits)], dim=-1)
    targets = [
        {"boxes": boxes, "class_labels": torch.zeros(len(boxes), dtype=torch.long)}
        for boxes in batch.boxes_cxcywh.split(batch.objects_per_sample)
    ]
    matcher = HungarianMatcher(bbox_cost=weights["l1"], giou_cost=weights["giou"], class_cost=weights["objectness"])
    pairs = matcher({"logits": logits, "pred_boxes": boxes_cxcywh}, targets)
    return torch.cat([queries[objects.argsort()] for queries, objects in pairs])


@pytest.mark.parametrize(
    "weights",
    [
        {"l1": 5.0, "giou": 2.0, "objectness": 1.0},
        {"l1": 1.0, "giou": 0.0, "objectness": 0.0},
        {"l1": 0.0, "giou": 1.0, "objectness": 0.0},
        {"l1": 0.1, "giou": 0.1, "objectness": 3.0},
    ],
)
@pytest.mark.parametrize("draw", range(5))
def test_the_assignment_is_that_of_transformers(weights, draw, random_boxes, batch_of, detections_of):
    batch = batch_of(*(random_boxes(f"true {draw} {i}", num_objects) for i, num_objects in enumerate((3, 1, 6))))
    pred, logits = random_boxes(f"predicted {draw}", 2, 3, 8), random_logits(draw, 2, 3, 8)
    queries = matcher_of(**weights)(detections_of(pred, logits), batch)
    expected = [transformers_assignment(weights, pred[layer], logits[layer], batch) for layer in range(2)]
    assert queries.tolist() == torch.stack(expected).tolist()


@pytest.mark.parametrize("draw", range(5))
def test_the_assignment_is_the_cheapest_of_all(draw, random_boxes, batch_of, detections_of):
    true, pred, logits = random_boxes(f"true {draw}", 4), random_boxes(f"predicted {draw}", 6), random_logits(draw, 6)
    queries = matcher_of()(detections_of(pred[None, None], logits[None, None]), batch_of(true))
    giou = generalized_box_iou(center_to_corners_format(true), center_to_corners_format(pred))
    cost = 5 * torch.cdist(true, pred, p=1) + 2 * (1 - giou) + (1 - logits.sigmoid())
    cheapest = min(permutations(range(6), 4), key=lambda chosen: cost[range(4), chosen].sum())
    assert queries[0].tolist() == list(cheapest)


def test_matching_ignores_the_order_of_targets(random_boxes, batch_of, detections_of):
    first, second = random_boxes("first", 3), random_boxes("second", 4)
    detections = detections_of(random_boxes("predicted", 2, 2, 9), random_logits("predicted", 2, 2, 9))
    matcher, order = matcher_of(), [2, 0, 3, 1]
    queries = matcher(detections, batch_of(first, second))
    reordered = matcher(detections, batch_of(first, second[order]))
    assert torch.equal(reordered[:, :3], queries[:, :3])
    assert torch.equal(reordered[:, 3:], queries[:, 3:][:, order])


def test_sweeping_a_loss_weight_does_not_change_the_matching(random_boxes, batch_of, detections_of, make_criterion):
    batch = batch_of(random_boxes("true", 5))
    detections = detections_of(random_boxes("predicted", 2, 1, 9), random_logits("predicted", 2, 1, 9))
    sweep = ("loss.weights.l1=0", "loss.weights.giou=100", "loss.weights.objectness=50", "loss.aux_weight=0")
    swept, default = make_criterion(*sweep), make_criterion()
    assert torch.equal(swept.matcher(detections, batch), default.matcher(detections, batch))


def test_costs_that_are_not_finite_do_not_stop_the_matching(random_boxes, batch_of, detections_of):
    pred, logits = random_boxes("predicted", 1, 2, 4), random_logits("predicted", 1, 2, 4)
    pred[0, 0, :2] = torch.tensor([torch.nan, torch.inf])[:, None]
    logits[0, 1] = torch.nan
    queries = matcher_of()(detections_of(pred, logits), batch_of(*random_boxes("true", 2, 2)))
    assert set(queries[0, :2].tolist()) == {2, 3}, "a query without a finite cost is the last choice"
    assert len(set(queries[0, 2:].tolist())) == 2


def test_two_objects_with_one_box_get_two_queries(random_boxes, batch_of, detections_of):
    box = random_boxes("true", 1)
    pred = torch.cat([random_boxes("predicted", 3), box, box + 0.01])[None, None]
    queries = matcher_of()(detections_of(pred, torch.zeros(1, 1, 5)), batch_of(box.expand(2, 4)))
    assert set(queries[0].tolist()) == {3, 4}


def test_objects_without_an_area_are_matched_by_their_position(batch_of, detections_of):
    points = torch.tensor([[0.2, 0.2, 0.0, 0.0], [0.8, 0.8, 0.0, 0.3]])
    pred = torch.stack([points[1], torch.tensor([0.5, 0.5, 0.2, 0.2]), points[0]])[None, None]
    queries = matcher_of()(detections_of(pred, torch.zeros(1, 1, 3)), batch_of(points))
    assert queries[0].tolist() == [2, 0]


def test_samples_without_objects_do_not_change_the_matching(random_boxes, batch_of, detections_of):
    true, pred, logits = (
        random_boxes("true", 2),
        random_boxes("predicted", 1, 3, 4),
        random_logits("predicted", 1, 3, 4),
    )
    matcher = matcher_of()
    among_empty = matcher(detections_of(pred, logits), batch_of(NO_BOXES, true, NO_BOXES))
    alone = matcher(detections_of(pred[:, 1:2], logits[:, 1:2]), batch_of(true))
    assert torch.equal(among_empty, alone)


def test_a_batch_without_any_object_gives_an_empty_matching(random_boxes, batch_of, detections_of):
    detections = detections_of(random_boxes("predicted", 2, 2, 4), random_logits("predicted", 2, 2, 4))
    assert matcher_of()(detections, batch_of(NO_BOXES, NO_BOXES)).shape == (2, 0)


def test_as_many_objects_as_queries_take_all_of_them(random_boxes, batch_of, detections_of):
    detections = detections_of(random_boxes("predicted", 1, 1, 3), random_logits("predicted", 1, 1, 3))
    queries = matcher_of()(detections, batch_of(random_boxes("true", 3)))
    assert set(queries[0].tolist()) == {0, 1, 2}


def test_more_objects_than_queries_name_the_sample(random_boxes, batch_of, detections_of):
    detections = detections_of(random_boxes("predicted", 1, 2, 2), random_logits("predicted", 1, 2, 2))
    batch = batch_of(random_boxes("few", 2), random_boxes("many", 3))
    with pytest.raises(InputError, match=r"sample 1 has 3 objects and the head has 2 queries.*head\.num_queries"):
        matcher_of()(detections, batch)
