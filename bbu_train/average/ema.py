"""An exponential moving average of the weights."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bbu_train.errors import InputError
from bbu_train.ops.numbers import is_number
from bbu_train.runtime.out_of_memory import is_out_of_memory, release

log = logging.getLogger(__name__)
MAX_ELEMENTS = 1 << 25  # bfloat16 weights that are averaged at once: their masters take an eighth of a GiB
Piece = tuple[str, slice]
"""The name of a parameter, and a part of its flattened elements."""


def build(decay: float, num_steps: int) -> Callable[[nn.Module, torch.optim.Optimizer], "ExponentialMovingAverage"]:
    """Check the values, which needs no model, and return what makes the average of a model and its optimizer."""
    if not is_number(decay) or not 0 <= decay < 1:
        raise InputError(f"average.decay={decay}: expected a number from 0 to below 1, such as 0.999")
    return partial(ExponentialMovingAverage, decay=decay, num_steps=num_steps)


class ExponentialMovingAverage:
    """Float32 averages of all trained parameters, kept beside the weights.

    After step t = 1, 2, ...:  a <- d_t a + (1 - d_t) w,  d_t = min(decay, (1 + t) / (10 + t))

    w is the float32 master of a weight if the optimizer has one, else the weight. The average starts at the initial
    weights and forgets early ones as d_t grows: it covers about the last ninth of the steps until d_t reaches `decay`.
    A `decay` that `num_steps`, those of the whole run, do not reach makes no difference, and a warning says so.

    All memory but that of `applied` is allocated here: an update allocates nothing, so it cannot fail halfway.

    `weights()` returns the averages, for evaluation, checkpoints and prediction. `unaveraged_weights()` returns the
    weights that the optimizer updates, which a resumed run needs as well. Both may be called at any time, also inside
    `applied()`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float, num_steps: int) -> None:
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
        in_bfloat16 = [p for p in self.parameters.values() if p.dtype != torch.float32]
        size = min(MAX_ELEMENTS, sum(p.numel() for p in in_bfloat16))
        self.scratch = torch.empty(size, device=next(iter(self.parameters.values())).device)
        self._trained: dict[str, Tensor] | None = None  # the trained weights, while the model has the averages

    def update(self, num_steps: int) -> None:
        """Update the averages after step number `num_steps`, from 1. The host does not wait for the device."""
        decay = min(self.decay, _first_decay(num_steps))
        update = get_ema_multi_avg_fn(decay)
        for pieces in self.chunks:
            averages = [self.averages[name].view(-1)[part] for name, part in pieces]
            update(averages, self._masters(pieces), None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averages, rounded to the dtypes of its weights; on exit, give it its own weights back."""
        self._trained = self._copy_weights()
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

    def _copy_weights(self) -> dict[str, Tensor]:
        """Copy the trained weights: on their device or, if they do not fit there twice, on the host."""
        try:
            return {name: p.detach().clone() for name, p in self.parameters.items()}
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release()
        return {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    def _masters(self, pieces: list[Piece]) -> list[Tensor]:
        """Return the float32 masters of some weights, or the weights as float32 where there are none."""
        weights = [self.parameters[name].detach().view(-1)[part] for name, part in pieces]
        if weights[0].dtype == torch.float32:
            return weights
        lengths = [weight.numel() for weight in weights]
        masters = list(self.scratch[: sum(lengths)].split(lengths))
        torch._foreach_copy_(masters, weights)  # a bfloat16 number is the upper half of a float32
        for (name, part), master in zip(pieces, masters, strict=True):
            parameter, state = self.parameters[name], self.optimizer.state
            # The state is a defaultdict: test for a key before looking it up, or an entry is added.
            if parameter in state and (low_bits := state[parameter].get("low_bits")) is not None:
                master.view(torch.int32).add_(low_bits.view(-1)[part])
        return masters

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        torch._foreach_copy_(list(self.parameters.values()), list(values.values()))


def _first_decay(step: int) -> float:
    """Return the decay after step number `step`, as long as it is below that of the config."""
    return (1 + step) / (10 + step)


def _split_into_chunks(parameters: dict[str, nn.Parameter]) -> list[list[Piece]]:
    """Return chunks of one dtype with up to MAX_ELEMENTS elements each."""
    chunks: list[list[Piece]] = []
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters.values()):
        room = 0
        for name, parameter in parameters.items():
            start = 0
            while parameter.dtype == dtype and start < parameter.numel():
                if room == 0:
                    chunks.append([])
                    room = MAX_ELEMENTS
                stop = min(start + room, parameter.numel())
                chunks[-1].append((name, slice(start, stop)))
                start, room = stop, room - (stop - start)
    return chunks
