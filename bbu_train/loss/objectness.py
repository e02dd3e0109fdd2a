"""What a query's objectness costs. Each choice takes logits, which queries answer for an object, and the IoU of those
with it (what it is for the others does not matter), and gives the loss of each query."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


class Focal:
    """-a_t (1 - p_t)^gamma log p_t (Lin et al. 2017), whatever the IoU.

    p_t is the probability of what is true, a_t is alpha for objects and 1 - alpha for the rest.
    """

    def __init__(self, alpha: float, gamma: float):
        self.alpha = alpha
        self.gamma = gamma

    def __call__(
        self, logits: Float[Tensor, "*n"], is_object: Bool[Tensor, "*#n"], iou: Float[Tensor, "*#n"]
    ) -> Float[Tensor, "*n"]:
        signed = torch.where(is_object, logits, -logits)  # p_t is its sigmoid
        weight = torch.where(is_object, self.alpha, 1 - self.alpha) * (self.gamma * logsigmoid(-signed)).exp()
        return -weight * logsigmoid(signed)


class Varifocal:
    """q BCE(p, q) for a query whose box has IoU q with its object, alpha p^gamma BCE(p, 0) for the rest (Zhang et al.
    2021, VarifocalNet): p becomes the IoU that is to be expected, so the better of two boxes gets the higher score.

    q and the weights are constants to the gradient.
    """

    def __init__(self, alpha: float, gamma: float):
        self.alpha = alpha
        self.gamma = gamma

    def __call__(
        self, logits: Float[Tensor, "*n"], is_object: Bool[Tensor, "*#n"], iou: Float[Tensor, "*#n"]
    ) -> Float[Tensor, "*n"]:
        quality = torch.where(is_object, iou.detach(), 0).expand_as(logits)
        weight = torch.where(is_object, quality, self.alpha * logits.detach().sigmoid() ** self.gamma)
        return weight * binary_cross_entropy_with_logits(logits, quality, reduction="none")
