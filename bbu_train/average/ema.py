"""An exponential moving average of the weights."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32

log = logging.getLogger(__name__)
MAX_ELEMENTS = 1 << 26  # weights that are averaged at once: each temporary takes a quarter of a GiB


class ExponentialMovingAverage:
    """Float32 averages of all trained parameters, kept beside the weights.

    After step t = 1, 2, ...:  a <- d_t a + (1 - d_t) w,  d_t = min(decay, (1 + t) / (10 + t))

    w is the float32 master of a weight if the optimizer has one, else the weight. The average starts at the initial
    weights and forgets early ones as d_t grows: it covers about the last ninth of the steps until d_t reaches `decay`.
    A `decay` that `num_steps`, those of the whole run, do not reach makes no difference, and a warning says so.

    `weights()` returns the averages, for evaluation, checkpoints and prediction. `unaveraged_weights()` returns the
    weights that the optimizer updates, which a resumed run needs as well. Both may be called at any time, also inside
    `applied()`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float, num_steps: int) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"average.decay is {decay}: expected a number from 0 to below 1, such as 0.999.")
        if decay >= _first_decay(num_steps):
            log.warning(
                "average.decay=%s makes no difference in a run of %d steps: until step %d the average covers the last "
                "ninth of the steps. Here only values below %.4g make one.",
                *(decay, num_steps, math.ceil((10 * decay - 1) / (1 - decay)), _first_decay(num_steps)),
            )
        self.model = model
        self.optimizer = optimizer
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()}
        self.chunks = _split_into_chunks(self.parameters)
        self._trained: dict[str, Tensor] | None = None  # the trained weights, while the model has the averages

    def update(self, num_steps: int) -> None:
        """Update the averages after step number `num_steps`, from 1. The host does not wait for the device."""
        decay = min(self.decay, _first_decay(num_steps))
        update = get_ema_multi_avg_fn(decay)
        for names in self.chunks:
            averages, parameters = ([tensors[name] for name in names] for tensors in (self.averages, self.parameters))
            update(averages, self._masters(parameters), None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averages, rounded to the dtypes of its weights; on exit, give it its own weights back."""
        self._trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(self._trained)
            self._trained = None

    def weights(self) -> dict[str, Tensor]:
        """Return the averages of trained parameters, and the weights of frozen ones."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()} | self.averages

    def unaveraged_weights(self) -> dict[str, Tensor]:
        """Return the trained weights themselves, without frozen ones."""
        return self._trained or {name: p.detach() for name, p in self.parameters.items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from averages that were saved as `weights`."""
        for name, average in self.averages.items():
            average.copy_(weights[name])

    def _masters(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Return the float32 masters of bfloat16 weights, or the weights as float32 if there are none."""
        weights = [parameter.detach() for parameter in parameters]
        state = self.optimizer.state  # a defaultdict: test for a key before looking it up, or an entry is added
        low_bits = [state[p].get("low_bits") if p in state else None for p in parameters]
        if all(bits is None for bits in low_bits):
            return [weight.float() for weight in weights]
        pairs = zip(weights, low_bits, strict=True)
        low_bits = [torch.zeros_like(weight, dtype=torch.int16) if bits is None else bits for weight, bits in pairs]
        flat = merge_float32(*(torch.cat([part.flatten() for part in parts]) for parts in (weights, low_bits)))
        masters = flat.split([weight.numel() for weight in weights])
        return [master.view_as(weight) for master, weight in zip(masters, weights, strict=True)]

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        torch._foreach_copy_(list(self.parameters.values()), list(values.values()))


def _first_decay(step: int) -> float:
    """Return the decay after step number `step`, as long as it is below that of the config."""
    return (1 + step) / (10 + step)


def _split_into_chunks(parameters: dict[str, nn.Parameter]) -> list[list[str]]:
    """Return chunks of parameter names; a chunk has one dtype and about MAX_ELEMENTS elements."""
    totals = accumulate(parameter.numel() for parameter in parameters.values())
    chunks: dict[tuple[torch.dtype, int], list[str]] = {}
    for (name, parameter), total in zip(parameters.items(), totals, strict=True):
        chunks.setdefault((parameter.dtype, total // MAX_ELEMENTS), []).append(name)
    return list(chunks.values())
