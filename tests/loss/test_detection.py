"""The terms of the detection loss, each against a reference of its own."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Bernoulli
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import (
    HungarianMatcher,
    ImageLoss,
    generalized_box_iou,
    sigmoid_focal_loss,
)

from bbu_train import boxes
from bbu_train.loss.detection import box_sums, caption_sum, focal_sum, layer_sums, matched_mask
from bbu_train.seeds import generator

NO_BOXES = torch.zeros(0, 4)


def random_logits(name, *shape):
    return torch.from_numpy(generator("logits", name).normal(0, 2, shape)).float()


def test_giou_is_that_of_transformers(random_boxes):
    a, b = random_boxes("a", 40), random_boxes("b", 30)
    a, b = center_to_corners_format(a), center_to_corners_format(b)
    torch.testing.assert_close(boxes.paired_generalized_iou(a[:, None], b[None]), generalized_box_iou(a, b))


def test_giou_has_the_gradient_of_transformers(random_boxes):
    a, b = random_boxes("a", 40).requires_grad_(), random_boxes("b", 40)
    ours = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(a), boxes.cxcywh_to_xyxy(b)).sum()
    theirs = generalized_box_iou(center_to_corners_format(a), center_to_corners_format(b)).diag().sum()
    torch.testing.assert_close(torch.autograd.grad(ours, a), torch.autograd.grad(theirs, a))


def test_box_sums_of_every_layer_are_those_of_transformers(random_boxes, batch_of, detections_of, make_criterion):
    true = [random_boxes("first", 3), NO_BOXES, random_boxes("third", 5)]
    said, logits = random_boxes("said", 3, 3, 8), random_logits("said", 3, 3, 8)
    pairs = torch.stack([logits, torch.zeros_like(logits)], dim=-1)  # softmax of (o, 0) is sigmoid(o)
    layers = [{"logits": pairs[i], "pred_boxes": said[i]} for i in range(3)]
    targets = [{"boxes": its, "class_labels": torch.zeros(len(its), dtype=torch.long)} for its in true]
    criterion = ImageLoss(HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2), 1, 0.1, ["boxes"])
    expected = criterion(layers[-1] | {"auxiliary_outputs": layers[:-1]}, targets)

    batch = batch_of(*true)
    matcher = make_criterion().matcher
    queries = matcher(detections_of(said, logits), batch)
    true = batch.sample_of_object, batch.boxes_cxcywh, batch.annotated
    l1, giou, _ = layer_sums(said, logits, queries, *true, focal_alpha=0.25, focal_gamma=2.0)
    num_objects = len(batch.boxes_cxcywh)
    for i, suffix in enumerate(("_0", "_1", "")):
        torch.testing.assert_close(l1[i] / num_objects, expected[f"loss_bbox{suffix}"])
        torch.testing.assert_close(giou[i] / num_objects, expected[f"loss_giou{suffix}"])


def test_boxes_without_an_area_give_finite_losses_and_gradients():
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    said = torch.cat([point, point, point + 0.2]).requires_grad_()
    true = torch.cat([point, point + 0.1, point])
    l1, giou = box_sums(said, true)
    (gradient,) = torch.autograd.grad(l1 + giou, said)
    assert torch.isfinite(l1 + giou)
    assert torch.isfinite(gradient).all()


def test_a_perfect_box_loses_nothing(random_boxes):
    l1, giou = box_sums(random_boxes("true", 4), random_boxes("true", 4))
    assert l1 == 0
    assert giou.item() == pytest.approx(0, abs=1e-5)


@pytest.fixture
def objectness():
    """Logits, which of them answer for an object, and which samples are annotated."""
    logits = random_logits("objectness", 3, 7).requires_grad_()
    is_object = torch.from_numpy(generator("is object").random((3, 7)) < 0.3)
    return logits, is_object, torch.tensor([True, False, True])


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_is_the_formula_of_lin_et_al(objectness, alpha, gamma):
    logits, is_object, annotated = objectness
    log_p = Bernoulli(logits=logits.double()).log_prob(is_object.double())
    alpha_true = torch.where(is_object, alpha, 1 - alpha).double()
    expected = (-alpha_true * (1 - log_p.exp()) ** gamma * log_p)[annotated].sum()
    loss = focal_sum(logits, is_object, annotated, alpha, gamma)
    torch.testing.assert_close(loss, expected.float())
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0)])
def test_focal_loss_is_that_of_transformers(objectness, alpha, gamma):
    logits, is_object, _ = objectness
    mean_over_queries = sigmoid_focal_loss(logits, is_object.float(), 1, alpha, gamma)
    loss = focal_sum(logits, is_object, torch.ones(3, dtype=torch.bool), alpha, gamma)
    torch.testing.assert_close(loss, mean_over_queries * logits.shape[1])


def test_focal_loss_ignores_samples_that_nobody_annotated(objectness):
    logits, is_object, annotated = objectness
    (gradient,) = torch.autograd.grad(focal_sum(logits, is_object, annotated, 0.25, 2.0), logits)
    assert (gradient != 0).all(dim=1).tolist() == annotated.tolist()
    assert (gradient == 0).all(dim=1).tolist() == (~annotated).tolist()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_of_a_certain_query_has_a_finite_gradient(gamma):
    logits = torch.tensor([[-300.0, -30.0, 30.0, 300.0]], requires_grad=True)
    for is_object in (True, False):
        loss = focal_sum(logits, torch.full((1, 4), is_object), torch.tensor([True]), 0.25, gamma)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_only_the_queries_that_answer_for_an_object_are_objects(random_boxes, batch_of):
    batch = batch_of(random_boxes("a", 2), NO_BOXES, random_boxes("b", 1))
    queries = torch.tensor([[2, 0, 1], [1, 3, 3]])
    mask = matched_mask(queries, batch.sample_of_object, num_samples=3, num_queries=4)
    assert mask[0].nonzero().tolist() == [[0, 0], [0, 2], [2, 1]]
    assert mask[1].nonzero().tolist() == [[0, 1], [0, 3], [2, 3]]


@pytest.fixture
def captioned(make_model, make_criterion, collate, encoded):
    """Detections of the tiny model, the queries of the objects, and the batch: 3, 2, no and 1 objects."""
    batch = collate("packed", encoded)
    detections = make_model()(batch).detections
    return detections, make_criterion().matcher(detections, batch)[-1], batch


def caption_of_object(detections, queries, batch, i) -> torch.Tensor:
    """Cross entropy of each caption token of one object, computed alone and without padding."""
    ids = batch.caption_ids[i][batch.caption_ids[i] >= 0]
    return detections.caption_losses(batch.sample_of_object[i : i + 1], queries[i : i + 1], ids[None], 1)[0]


def test_caption_loss_is_a_mean_over_tokens_then_over_objects_and_a_sum_over_samples(captioned):
    detections, queries, batch = captioned
    expected = 0
    for sample, num_objects in enumerate(batch.objects_per_sample):
        its_objects = (batch.sample_of_object == sample).nonzero()[:, 0].tolist()
        means = [caption_of_object(detections, queries, batch, i).mean() for i in its_objects]
        expected += sum(means) / max(1, num_objects)
    torch.testing.assert_close(caption_sum(detections, queries, batch), expected)


def test_padding_of_captions_is_ignored(captioned):
    detections, queries, batch = captioned
    losses = detections.caption_losses(batch.sample_of_object, queries, batch.caption_ids, 3)
    assert ((losses == 0) == (batch.caption_ids < 0)).all()
    padded = torch.nn.functional.pad(batch.caption_ids, (0, 4), value=-100)
    more_padded = detections.caption_losses(batch.sample_of_object, queries, padded, 5)
    torch.testing.assert_close(more_padded[:, :-4], losses)
    assert (more_padded[:, -4:] == 0).all()


def test_the_order_of_objects_does_not_change_the_caption_loss(captioned, make_model, make_criterion, collate, encoded):
    detections, queries, batch = captioned
    backwards = [replace(s, boxes_cxcywh=s.boxes_cxcywh.flip(0), captions=s.captions[::-1]) for s in encoded]
    reordered = collate("packed", backwards)
    again = make_model()(reordered).detections
    its_queries = make_criterion().matcher(again, reordered)[-1]
    torch.testing.assert_close(caption_sum(again, its_queries, reordered), caption_sum(detections, queries, batch))
