"""Losses of objectness. Each is called with logits, a mask of the queries matched to an object, and their IoU with it.

Each returns the loss of every query. The IoU of unmatched queries is ignored.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from bbu_train.errors import all_problems
from bbu_train.ops.numbers import is_number


def _check(alpha: float, gamma: float) -> None:
    problems = []
    if not is_number(alpha) or not 0 <= alpha <= 1:
        problems.append(f"loss.objectness.alpha={alpha}: expected a number from 0 to 1")
    if not is_number(gamma) or gamma < 0:
        problems.append(f"loss.objectness.gamma={gamma}: expected a number, 0 or above")
    if problems:
        raise all_problems("The loss", problems, "Set these keys in conf/loss or as overrides.")


class FocalLoss:
    """Focal loss, -a_t (1 - p_t)^gamma log p_t (Lin et al. 2017). It ignores the IoU.

    p_t is the predicted probability of the true label; a_t is alpha for objects and 1 - alpha for the others.
    """

    def __init__(self, alpha: float, gamma: float) -> None:
        _check(alpha, gamma)
        self.alpha = alpha
        self.gamma = gamma

    def __call__(
        self, logits: Float[Tensor, "*n"], is_object: Bool[Tensor, "*#n"], iou: Float[Tensor, "*#n"]
    ) -> Float[Tensor, "*n"]:
        signed = torch.where(is_object, logits, -logits)  # p_t = sigmoid(signed)
        weight = torch.where(is_object, self.alpha, 1 - self.alpha) * (self.gamma * logsigmoid(-signed)).exp()
        return -weight * logsigmoid(signed)


class VarifocalLoss:
    """Varifocal loss: q BCE(p, q) for an object, alpha p^gamma BCE(p, 0) for the others (Zhang et al. 2021).

    q is the IoU of the query's box with its object. p learns the expected IoU, so the better of two boxes gets the
    higher score. No gradient flows through q and the weights.
    """

    def __init__(self, alpha: float, gamma: float) -> None:
        _check(alpha, gamma)
        self.alpha = alpha
        self.gamma = gamma

    def __call__(
        self, logits: Float[Tensor, "*n"], is_object: Bool[Tensor, "*#n"], iou: Float[Tensor, "*#n"]
    ) -> Float[Tensor, "*n"]:
        quality = torch.where(is_object, iou.detach(), 0).expand_as(logits)
        weight = torch.where(is_object, quality, self.alpha * logits.detach().sigmoid() ** self.gamma)
        return weight * binary_cross_entropy_with_logits(logits, quality, reduction="none")
