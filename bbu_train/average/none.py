"""No average: the trained weights themselves are evaluated and saved."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class NoAverage:
    """The interface of `ExponentialMovingAverage` over the weights that the last step left."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.averages: dict[str, Tensor] = {}

    def update(self, num_steps: int) -> None: ...

    def applied(self) -> AbstractContextManager[None]:
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def unaveraged_weights(self) -> dict[str, Tensor]:
        """Return {}: `weights` returns the trained weights already."""
        return {}

    def load(self, weights: dict[str, Tensor]) -> None: ...
