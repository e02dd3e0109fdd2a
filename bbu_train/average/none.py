"""No average: the weights that are trained are those that are evaluated and saved."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class NoAverage:
    """What `ema.ExponentialMovingAverage` does, of the weights as the last step left them."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.model = model
        self.averages: dict[str, Tensor] = {}

    def update(self, num_steps: int) -> None: ...

    def applied(self) -> AbstractContextManager:
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def trained(self) -> dict[str, Tensor]:
        return {}

    def load(self, weights: dict[str, Tensor]) -> None: ...
