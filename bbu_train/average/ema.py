"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32

MOST_AT_ONCE = 1 << 26  # numbers that are averaged together: a quarter of a GiB for each temporary


class ExponentialMovingAverage:
    """Averages of all parameters that are trained, in float32, beside the weights themselves.

    a <- d_t a + (1 - d_t) w,  d_t = min(decay, (1 + t) / (10 + t))  after step t = 1, 2, ...

    w is a weight in float32, where the optimizer knows it so. The average begins at the weights and, as d_t grows,
    forgets early ones: it covers about the last ninth of the steps, until `decay` is reached.

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
        self.together = _together(self.parameters)
        self._kept: dict[str, Tensor] | None = None  # the weights, while the model has the averages

    def update(self, num_steps: int) -> None:
        """After step number `num_steps`. The host does not wait."""
        decay = min(self.decay, (1 + num_steps) / (10 + num_steps))
        follow = get_ema_multi_avg_fn(decay)
        for names in self.together:
            averages, parameters = ([its[name] for name in names] for its in (self.averages, self.parameters))
            follow(averages, self._masters(parameters), None)

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

    def _masters(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        weights = [parameter.detach() for parameter in parameters]
        state = self.optimizer.state  # which would make an entry for a parameter that is looked up in vain
        low_bits = [state[p].get("low_bits") if p in state else None for p in parameters]
        if all(bits is None for bits in low_bits):
            return [weight.float() for weight in weights]
        pairs = zip(weights, low_bits, strict=True)
        low_bits = [torch.zeros_like(weight, dtype=torch.int16) if bits is None else bits for weight, bits in pairs]
        joined = merge_float32(*(torch.cat([each.flatten() for each in its]) for its in (weights, low_bits)))
        parts = joined.split([weight.numel() for weight in weights])
        return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        torch._foreach_copy_(list(self.parameters.values()), list(values.values()))


def _together(parameters: dict[str, nn.Parameter]) -> list[list[str]]:
    """The names of parameters of one dtype, of about MOST_AT_ONCE numbers, in lists."""
    totals = accumulate(parameter.numel() for parameter in parameters.values())
    lists: dict[tuple, list[str]] = {}
    for (name, parameter), total in zip(parameters.items(), totals, strict=True):
        lists.setdefault((parameter.dtype, total // MOST_AT_ONCE), []).append(name)
    return list(lists.values())
