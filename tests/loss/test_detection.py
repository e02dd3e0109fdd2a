"""The terms of the detection loss, each against a reference implementation."""

from dataclasses import replace

import pytest
import torch
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import (
    HungarianMatcher,
    ImageLoss,
    box_iou,
    generalized_box_iou,
    sigmoid_focal_loss,
)

from bbu_train.loss.detection import box_losses, caption_sum, denoising_sums, dense_sums, layer_sums, scatter_to_queries
from bbu_train.loss.objectness import FocalLoss, VarifocalLoss
from bbu_train.ops import boxes
from bbu_train.runtime.seeds import generator

NO_BOXES = torch.zeros(0, 4)


def random_logits(name, *shape):
    return torch.from_numpy(generator("logits", name).normal(0, 2, shape)).float()


def test_giou_is_that_of_transformers(random_boxes):
    a, b = random_boxes("a", 40), random_boxes("b", 30)
    a, b = center_to_corners_format(a), center_to_corners_format(b)
    torch.testing.assert_close(boxes.paired_generalized_iou(a[:, None], b[None]), generalized_box_iou(a, b))


def test_giou_has_the_gradient_of_transformers(random_boxes):
    a, b = random_boxes("a", 40).requires_grad_(), random_boxes("b", 40)
    giou = boxes.paired_generalized_iou(boxes.cxcywh_to_xyxy(a), boxes.cxcywh_to_xyxy(b)).sum()
    expected = generalized_box_iou(center_to_corners_format(a), center_to_corners_format(b)).diag().sum()
    torch.testing.assert_close(torch.autograd.grad(giou, a), torch.autograd.grad(expected, a))


def test_box_sums_of_every_layer_are_those_of_transformers(random_boxes, batch_of, detections_of, make_criterion):
    true = [random_boxes("first", 3), NO_BOXES, random_boxes("third", 5)]
    pred, logits = random_boxes("predicted", 3, 3, 8), random_logits("predicted", 3, 3, 8)
    pairs = torch.stack([logits, torch.zeros_like(logits)], dim=-1)  # softmax of (o, 0) is sigmoid(o)
    layers = [{"logits": pairs[i], "pred_boxes": pred[i]} for i in range(3)]
    targets = [{"boxes": b, "class_labels": torch.zeros(len(b), dtype=torch.long)} for b in true]
    criterion = ImageLoss(HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2), 1, 0.1, ["boxes"])
    expected = criterion(layers[-1] | {"auxiliary_outputs": layers[:-1]}, targets)

    batch = batch_of(*true)
    matcher = make_criterion().matcher
    queries = matcher(detections_of(pred, logits), batch)
    truth = batch.sample_of_object, batch.boxes_cxcywh, batch.annotated
    l1, giou, _ = layer_sums(pred, logits, queries, *truth, FocalLoss(0.25, 2.0))
    num_objects = len(batch.boxes_cxcywh)
    for i, suffix in enumerate(("_0", "_1", "")):
        torch.testing.assert_close(l1[i] / num_objects, expected[f"loss_bbox{suffix}"])
        torch.testing.assert_close(giou[i] / num_objects, expected[f"loss_giou{suffix}"])


def test_boxes_without_an_area_give_finite_losses_and_gradients():
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    pred = torch.cat([point, point, point + 0.2]).requires_grad_()
    true = torch.cat([point, point + 0.1, point])
    l1, giou, _ = (losses.sum() for losses in box_losses(pred, true))
    (gradient,) = torch.autograd.grad(l1 + giou, pred)
    assert torch.isfinite(l1 + giou)
    assert torch.isfinite(gradient).all()


def test_a_perfect_box_has_no_loss(random_boxes):
    l1, giou, iou = box_losses(random_boxes("true", 4), random_boxes("true", 4))
    assert l1.tolist() == [0] * 4
    assert giou.tolist() == pytest.approx([0] * 4, abs=1e-5)
    assert iou.tolist() == pytest.approx([1] * 4, abs=1e-5)


def objectness_of(logits, annotated, queries, random_boxes, objectness):
    """The objectness sum of one layer; the first sample has two objects and the others none."""
    pred, true = random_boxes("among", *logits.shape), random_boxes("true", 2)
    pred[0, queries] = true * torch.tensor([[1.0, 1.0, 0.5, 0.5], [1.1, 1.0, 1.0, 1.0]])
    truth = torch.tensor([0, 0]), true, annotated
    return layer_sums(pred[None], logits[None], queries[None], *truth, objectness)[2][0]


def test_objectness_is_a_sum_over_all_queries_of_annotated_samples(random_boxes):
    logits = random_logits("objectness", 3, 7).requires_grad_()
    annotated, queries = torch.tensor([True, False, True]), torch.tensor([5, 2])
    is_object = torch.zeros(3, 7, dtype=torch.bool)
    is_object[0, [5, 2]] = True
    loss = objectness_of(logits, annotated, queries, random_boxes, FocalLoss(0.25, 2.0))
    mean_over_queries = sigmoid_focal_loss(logits[[0, 2]], is_object[[0, 2]].float(), 1, 0.25, 2.0)
    torch.testing.assert_close(loss, mean_over_queries * 7)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient != 0).all(dim=1).tolist() == annotated.tolist()
    assert (gradient == 0).all(dim=1).tolist() == (~annotated).tolist()


def test_objectness_gets_the_iou_of_each_query_with_its_object(random_boxes):
    ious = []

    def objectness(logits, is_object, iou):
        ious.append(torch.where(is_object, iou, 0)[0])
        return logits

    logits, queries = random_logits("objectness", 3, 7), torch.tensor([5, 2])
    objectness_of(logits, torch.ones(3, dtype=torch.bool), queries, random_boxes, objectness)
    assert ious[0].count_nonzero() == 2
    assert ious[0][0, 5].item() == pytest.approx(0.25, abs=1e-5), "half as wide and half as high"
    moved = center_to_corners_format(random_boxes("true", 2)[1] * torch.tensor([[1.1, 1, 1, 1], [1, 1, 1, 1]]))
    assert ious[0][0, 2].item() == pytest.approx(box_iou(moved[:1], moved[1:])[0].item(), abs=1e-5)


@pytest.mark.parametrize("choice", [FocalLoss(0.25, 2.0), VarifocalLoss(0.75, 2.0)])
def test_denoising_losses_are_the_mean_over_groups(choice, random_boxes):
    true, pred = random_boxes("true", 3), random_boxes("predicted", 2, 3, 4)
    logits = random_logits("noised", 2, 3, 4, 2)
    sums = denoising_sums(pred, logits, true, choice)
    expected = [0, 0, 0]
    for group in range(4):
        group_boxes, group_logits = pred[:, :, group], logits[:, :, group]
        l1, giou, _ = box_losses(group_boxes, true)
        iou = torch.stack([boxes.paired_iou(*map(boxes.cxcywh_to_xyxy, (layer, true))) for layer in group_boxes])
        objectness = choice(group_logits[..., 0], torch.tensor(True), iou).sum()
        objectness = objectness + choice(group_logits[..., 1], torch.tensor(False), iou).sum()
        parts = l1.sum(), giou.sum(), objectness
        expected = [total + part / 4 for total, part in zip(expected, parts, strict=True)]
    torch.testing.assert_close(torch.stack(sums), torch.stack(expected))


@pytest.mark.parametrize("choice", [FocalLoss(0.25, 2.0), VarifocalLoss(0.75, 2.0)])
def test_dense_losses_are_a_mean_over_the_tokens_of_each_object(choice, random_boxes):
    """Tokens without an object count each, and pictures without annotations do not count."""
    true, pred, logits = random_boxes("true", 3), random_boxes("predicted", 3, 5), random_logits("dense", 3, 5)
    objects = torch.tensor([[0, 0, -1, 1, 0], [-1, 2, -1, 2, -1], [-1, -1, -1, -1, -1]])
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 4] = False
    sums = dense_sums(pred, logits, objects, mask, true, torch.tensor([True, True, False]), choice)
    expected = torch.zeros(3)
    for i, sample in ((0, 0), (1, 0), (2, 1)):
        tokens = objects[sample] == i
        token_true = true[i].expand(tokens.sum(), 4)
        l1, giou, _ = (losses.sum() for losses in box_losses(pred[sample, tokens], token_true))
        iou = boxes.paired_iou(*map(boxes.cxcywh_to_xyxy, (pred[sample, tokens], token_true)))
        objectness = choice(logits[sample, tokens], torch.tensor(True), iou).sum()
        expected += torch.stack([l1, giou, objectness]) / tokens.sum()
    without_object = (objects == -1) & mask & torch.tensor([[True], [True], [False]])
    expected[2] += choice(logits[without_object], torch.tensor(False), torch.zeros(())).sum()
    torch.testing.assert_close(torch.stack(sums), expected)


def test_only_matched_queries_are_objects(random_boxes, batch_of):
    batch = batch_of(random_boxes("a", 2), NO_BOXES, random_boxes("b", 1))
    queries = torch.tensor([[2, 0, 1], [1, 3, 3]])
    values = torch.ones_like(queries, dtype=torch.bool)
    mask = scatter_to_queries(values, queries, batch.sample_of_object, num_samples=3, num_queries=4)
    assert mask[0].nonzero().tolist() == [[0, 0], [0, 2], [2, 1]]
    assert mask[1].nonzero().tolist() == [[0, 1], [0, 3], [2, 3]]


@pytest.fixture(scope="module")
def captioned(make_model, make_criterion, collate, encoded):
    """Detections of the tiny model, the query of each object, and a batch whose samples have 3, 2, 0 and 1 objects."""
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
        objects = (batch.sample_of_object == sample).nonzero()[:, 0].tolist()
        means = [caption_of_object(detections, queries, batch, i).mean() for i in objects]
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
    new_detections = make_model()(reordered).detections
    new_queries = make_criterion().matcher(new_detections, reordered)[-1]
    expected = caption_sum(detections, queries, batch)
    torch.testing.assert_close(caption_sum(new_detections, new_queries, reordered), expected)
