"""The objectness losses, against the formulas of the papers and against transformers."""

import pytest
import torch
from torch.distributions import Bernoulli
from transformers import RTDetrConfig
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import box_iou, sigmoid_focal_loss
from transformers.loss.loss_rt_detr import RTDetrLoss

from bbu_train.loss.objectness import FocalLoss, VarifocalLoss
from bbu_train.runtime.seeds import generator

CHOICES = [(FocalLoss, 0.25), (VarifocalLoss, 0.75)]


@pytest.fixture
def queries():
    """Logits, which queries are matched to an object, and the IoU with it."""
    logits = torch.from_numpy(generator("logits").normal(0, 2, (3, 7))).float().requires_grad_()
    is_object, iou = generator("is object").random((2, 3, 7), dtype="float32")
    return logits, torch.from_numpy(is_object < 0.3), torch.from_numpy(iou)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_is_the_formula_of_lin_et_al(queries, alpha, gamma):
    logits, is_object, iou = queries
    log_p = Bernoulli(logits=logits.double()).log_prob(is_object.double())
    alpha_true = torch.where(is_object, alpha, 1 - alpha).double()
    expected = -alpha_true * (1 - log_p.exp()) ** gamma * log_p
    losses = FocalLoss(alpha, gamma)(logits, is_object, iou)
    torch.testing.assert_close(losses, expected.float())
    gradients = (torch.autograd.grad(loss.sum(), logits) for loss in (losses, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0)])
def test_focal_loss_is_that_of_transformers(queries, alpha, gamma):
    logits, is_object, iou = queries
    mean_over_queries = sigmoid_focal_loss(logits, is_object.float(), 1, alpha, gamma)
    losses = FocalLoss(alpha, gamma)(logits, is_object, iou)
    torch.testing.assert_close(losses.sum(), mean_over_queries * logits.shape[1])


@pytest.mark.parametrize(("alpha", "gamma"), [(0.75, 2.0), (0.4, 1.0)])
def test_varifocal_loss_is_that_of_transformers(queries, alpha, gamma):
    logits, _, _ = queries
    peer = RTDetrLoss(RTDetrConfig(num_labels=1, focal_loss_alpha=alpha, focal_loss_gamma=gamma))
    peer.alpha, peer.gamma = alpha, gamma
    pred, true = torch.from_numpy(0.1 + 0.4 * generator("boxes").random((2, 3, 7, 4), dtype="float32"))
    nothing = torch.zeros(0, dtype=torch.long)
    matches = [
        (torch.tensor([4, 0]), torch.tensor([0, 1])),
        (torch.tensor([6]), torch.tensor([0])),
        (nothing, nothing),
    ]
    targets = [
        {"boxes": boxes[:n], "class_labels": torch.zeros(n, dtype=torch.long)}
        for boxes, n in zip(true, (2, 1, 0), strict=True)
    ]
    expected = peer.loss_labels_vfl({"logits": logits[..., None], "pred_boxes": pred}, targets, matches, num_boxes=1)
    is_object, iou = torch.zeros(3, 7, dtype=torch.bool), torch.zeros(3, 7)
    for sample, (chosen, objects) in enumerate(matches):
        is_object[sample, chosen] = True
        corners = center_to_corners_format(pred[sample, chosen]), center_to_corners_format(true[sample, objects])
        iou[sample, chosen] = box_iou(*corners)[0].diag()
    loss = VarifocalLoss(alpha, gamma)(logits, is_object, iou).sum()
    torch.testing.assert_close(loss, expected["loss_vfl"])
    gradients = (torch.autograd.grad(value, logits) for value in (loss, expected["loss_vfl"]))
    torch.testing.assert_close(*gradients)


def test_varifocal_loss_is_minimal_where_objectness_is_the_iou():
    iou = torch.tensor([0.2, 0.5, 0.9])
    logits = iou.logit().requires_grad_()
    losses = VarifocalLoss(0.75, 2.0)(logits, torch.ones(3, dtype=torch.bool), iou)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("choice", "alpha"), CHOICES)
def test_no_gradient_flows_through_the_iou(queries, choice, alpha):
    logits, is_object, iou = queries
    iou.requires_grad_()
    choice(alpha, 2.0)(logits, is_object, iou).sum().backward()
    assert iou.grad is None


@pytest.mark.parametrize(("choice", "alpha"), CHOICES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_extreme_logits_have_a_finite_gradient(choice, alpha, gamma):
    logits = torch.tensor([-300.0, -30.0, 30.0, 300.0], requires_grad=True)
    for is_object in (True, False):
        losses = choice(alpha, gamma)(logits, torch.full((4,), is_object), torch.tensor([0.0, 0.3, 0.7, 1.0]))
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradient).all()
