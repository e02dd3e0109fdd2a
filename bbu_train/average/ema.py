"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bbu_train.errors import InputError
from bbu_train.masters import whole


class Average:
    """Averages of all parameters that are trained, in float32, beside the weights themselves.

    a <- d_t a + (1 - d_t) w,  d_t = min(decay, (1 + t) / (10 + t))  after step t = 1, 2, ...

    w is a weight in float32, where the optimizer knows it so. The average begins at the weights and, as d_t
    grows, forgets early ones: it covers about the last ninth of the steps, until `decay` is reached.

    `weights` are what is evaluated, saved and predicted with, `trained` what training needs besides to go on. Both are
    true at any time, within `applied` too.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float):
        if not 0 <= decay < 1:
            raise InputError(f"average.decay is {decay}: expected a number from 0 to below 1, such as 0.999.")
        self.model = model
        self.optimizer = optimizer
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()}
        self._kept: dict[str, Tensor] | None = None  # the weights, while the model has the averages

    def update(self, num_steps: int) -> None:
        """After step number `num_steps`. The host does not wait."""
        decay = min(self.decay, (1 + num_steps) / (10 + num_steps))
        follow = get_ema_multi_avg_fn(decay)
        for name, parameter in self.parameters.items():  # one after the other: only one float32 copy at a time
            follow([self.averages[name]], [self._master(parameter)], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Meanwhile the model has the averages, rounded to what its weights are kept in; afterwards it is as before."""
        self._kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(self._kept)
            self._kept = None

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()} | self.averages

    def trained(self) -> dict[str, Tensor]:
        return self._kept or {name: p.detach() for name, p in self.parameters.items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from `weights` as they were saved."""
        for name, average in self.averages.items():
            average.copy_(weights[name])

    def _master(self, parameter: nn.Parameter) -> Tensor:
        state = self.optimizer.state  # which would make an entry for a parameter that is looked up in vain
        if parameter in state and "rest" in state[parameter]:
            return whole(parameter.detach(), state[parameter]["rest"])
        return parameter.detach().float()

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        torch._foreach_copy_(list(self.parameters.values()), list(values.values()))
