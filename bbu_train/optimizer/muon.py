"""Muon for the matrices of a network's layers, AdamW for embeddings, norms, biases and heads."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bbu_train.errors import InputError
from bbu_train.optimizer.groups import make_param_groups
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.optimizer.newton_schulz import NewtonSchulz

ADAMW_RMS = 0.2  # typical RMS of an AdamW update at rate 1 (Liu et al. 2025)
MAX_BATCH_ELEMENTS = 1 << 24  # elements in a batch of equal-shaped matrices, or in a single larger matrix


def build(
    model: nn.Module,
    groups: dict[str, dict[str, Any]],
    matrices: str,
    momentum: float,
    *,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    precision: str,
) -> "Muon":
    """Freeze the groups with rate 0 and give the others to Muon and AdamW, at the same rates.

    Muon takes the matrices whose names match the regular expression `matrices` (anywhere in the name). The other
    arguments are those of `adamw.build`, but "pure_bf16" is refused: Muon keeps float32 masters.
    """
    if precision == "pure_bf16":
        raise InputError("optimizer=muon keeps float32 masters: take engine.precision=bf16, or optimizer=adamw.")
    if not 0 <= momentum < 1:
        raise InputError(f"optimizer.momentum is {momentum}: expected a number from 0 to below 1.")
    try:
        selected = {p for name, p in model.named_parameters() if p.ndim == 2 and re.search(matrices, name)}
    except re.error as error:
        raise InputError(f'optimizer.matrices is "{matrices}": not a regular expression ({error}).') from error
    param_groups = []
    for group in make_param_groups(model, groups, betas, eps, weight_decay):
        for_muon, for_adamw = ([p for p in group["params"] if (p in selected) == is_muon] for is_muon in (True, False))
        param_groups += [{**group, "params": for_muon, "momentum": momentum}] if for_muon else []
        param_groups += [{**group, "params": for_adamw}] if for_adamw else []
    if not any("momentum" in group for group in param_groups):
        raise InputError(f'optimizer.matrices is "{matrices}": no trained matrix has it in its name.')
    return Muon(param_groups, has_masters=True, betas=(betas[0], betas[1]), eps=eps)


class Muon(MixedAdamW):
    """Muon (Jordan et al. 2024) for the param groups that have a "momentum", MixedAdamW for the others.

    M <- M + (1 - mu) (G - M),  W <- W - (0.2 lr sqrt(max(n, m)) O(G + mu (M - G)) + lr decay W)

    for W of shape (n, m), where O moves all singular values close to 1. The factor makes an update as large as AdamW's,
    so that a rate means the same for both (Liu et al. 2025). This is torch.optim.Muon with "match_rms_adamw", except
    that matrices of one shape are updated together, that bfloat16 matrices have float32 masters, and that `grad_scale`
    and `found_inf` are read on the device.
    """

    def __init__(self, param_groups: list[dict[str, Any]], has_masters: bool, **settings: Any) -> None:
        super().__init__(param_groups, has_masters, **settings)
        self.scratch: list[Tensor] | None = None

    def allocate(self) -> None:
        super().allocate()
        if self.scratch is None:
            batches = [batch for group in self._muon_groups() for batch in _batch_by_shape(group["params"])]
            shapes = [(len(batch), *batch[0].shape) for batch in batches]
            device, size = self.grad_scale.device, max(map(math.prod, shapes))
            self.scratch = [torch.empty(size, device=device) for _ in range(3)]
            self.newton_schulz = NewtonSchulz(shapes, device)

    def _muon_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if "momentum" in group]

    def _adamw_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if "momentum" not in group]

    def _new_state(self, group: dict[str, Any], parameter: nn.Parameter) -> dict[str, Tensor]:
        if "momentum" not in group:
            return super()._new_state(group, parameter)
        state = {"step": torch.zeros((), device=parameter.device)}
        state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
        if parameter.dtype == torch.bfloat16:
            state["low_bits"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state

    def _prepare(self) -> list[Callable[[], None]]:
        is_refused, taken = self.found_inf != 0, 1 - self.found_inf
        writes: list[Callable[[], None]] = [
            partial(self._update_batch, group, parameters, is_refused, taken)
            for group in self._muon_groups()
            for parameters in _batch_by_shape(p for p in group["params"] if p.grad is not None)
        ]
        return writes + super()._prepare()

    def _update_batch(
        self, group: dict[str, Any], parameters: list[nn.Parameter], is_refused: Tensor, taken: Tensor
    ) -> None:
        """Update parameters of one shape and dtype, and free their gradients. Nothing is allocated."""
        states = [self.state[parameter] for parameter in parameters]
        moments = [state["momentum"] for state in states]
        shape = len(parameters), *parameters[0].shape
        direction, before, after = (buffer[: math.prod(shape)].view(shape) for buffer in self.scratch)
        torch._foreach_copy_(list(direction), [p.grad for p in parameters])
        direction.div_(self.grad_scale)
        torch._foreach_copy_(list(before), moments)
        torch.lerp(before, direction, 1 - group["momentum"], out=after)
        direction.lerp_(after, group["momentum"])
        torch._foreach_copy_(moments, list(torch.where(is_refused, before, after, out=after)))

        self.newton_schulz.orthogonalize_(direction)
        low_bits = [state["low_bits"] for state in states if "low_bits" in state]
        stored = [parameter.detach() for parameter in parameters]
        _read_weights(before, stored, low_bits, scratch=after)
        rate = group["lr"] * ADAMW_RMS * math.sqrt(max(parameters[0].shape))
        direction.mul_(rate).add_(before, alpha=group["lr"] * group["weight_decay"])
        torch.sub(before, direction, out=after)
        torch.where(is_refused, before, after, out=after)
        _write_weights(after, stored, low_bits, scratch=direction)
        torch._foreach_add_([state["step"] for state in states], taken)
        for parameter in parameters:
            parameter.grad = None


def _read_weights(weights: Tensor, stored: list[Tensor], low_bits: list[Tensor], scratch: Tensor) -> None:
    """Fill `weights` with the stored float32 weights, or with those that are split (`ops/split_float32.py`)."""
    if not low_bits:
        torch._foreach_copy_(list(weights), stored)
        return
    bits, added = weights.view(torch.int32), scratch.view(torch.int32)
    torch._foreach_copy_(list(bits), [weight.view(torch.int16) for weight in stored])
    torch._foreach_copy_(list(added), low_bits)
    bits.bitwise_left_shift_(16).add_(added)


def _write_weights(weights: Tensor, stored: list[Tensor], low_bits: list[Tensor], scratch: Tensor) -> None:
    """Store float32 weights where `_read_weights` found them. `weights` and `scratch` are used up."""
    if not low_bits:
        torch._foreach_copy_(stored, list(weights))
        return
    bits, high = weights.view(torch.int32), scratch.view(torch.int32)
    torch.add(bits, 0x8000, out=high).bitwise_right_shift_(16)
    torch._foreach_copy_([weight.view(torch.int16) for weight in stored], list(high))
    torch._foreach_copy_(low_bits, list(bits.sub_(high.bitwise_left_shift_(16))))


def _batch_by_shape(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield lists of parameters of one shape and dtype, of up to MAX_BATCH_ELEMENTS elements or a single parameter."""
    by_kind: dict[tuple[torch.Size, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        by_kind.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
    for same_shape in by_kind.values():
        batch_size = max(1, MAX_BATCH_ELEMENTS // same_shape[0].numel())
        yield from (same_shape[i : i + batch_size] for i in range(0, len(same_shape), batch_size))
