"""Muon for the matrices of a network's layers, AdamW for embeddings, norms, biases and heads."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32, split_float32
from bbu_train.optimizer.groups import make_param_groups
from bbu_train.optimizer.mixed_adamw import MixedAdamW

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Coefficients of x, x^3 and x^5 in a Newton-Schulz step: the slope at 0 is as large as possible while singular values
near 1 stay near 1 (Jordan 2024)."""
NUM_ITERATIONS = 5
ADAMW_RMS = 0.2  # typical RMS of an AdamW update at rate 1 (Liu et al. 2025)
MAX_BATCH_ELEMENTS = 1 << 26  # elements in a batch of equal-shaped matrices: each temporary takes a quarter of a GiB


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

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient. Frees the gradients of Muon's matrices and of bfloat16 ones."""
        for group in self.param_groups:
            if "momentum" in group:
                for parameters in _batch_by_shape(p for p in group["params"] if p.grad is not None):
                    self._update_batch(group, parameters)
        super().step()

    def _update_batch(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        """Update parameters of one shape and dtype."""
        states = [self._get_muon_state(parameter) for parameter in parameters]
        moments = [state["momentum"] for state in states]
        stored = [parameter.detach() for parameter in parameters]
        low_bits = [state["low_bits"] for state in states if "low_bits" in state]
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None]).float() / self.grad_scale
        before, weights = torch.stack(moments), torch.stack(stored)
        weights = merge_float32(weights, torch.stack(low_bits)) if low_bits else weights
        moment = before.lerp(gradients, 1 - group["momentum"])
        direction = orthogonalize(gradients.lerp(moment, group["momentum"]))
        rate = group["lr"] * ADAMW_RMS * math.sqrt(max(parameters[0].shape))
        updated = weights - direction.mul_(rate).add_(weights, alpha=group["lr"] * group["weight_decay"])
        is_refused = self.found_inf != 0
        torch._foreach_add_([state["step"] for state in states], 1 - self.found_inf)
        torch._foreach_copy_(moments, list(torch.where(is_refused, before, moment)))
        updated = torch.where(is_refused, weights, updated)
        if low_bits:
            updated, new_low_bits = split_float32(updated)
            torch._foreach_copy_(low_bits, list(new_low_bits))
        torch._foreach_copy_(stored, list(updated))
        for parameter in parameters:
            parameter.grad = None

    def _get_muon_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of a matrix, which is zero before its first update."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
            if parameter.dtype == torch.bfloat16:
                state["low_bits"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state


def _batch_by_shape(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield lists of parameters of one shape and dtype, of up to MAX_BATCH_ELEMENTS elements or a single parameter."""
    by_kind: dict[tuple[torch.Size, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        by_kind.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
    for same_shape in by_kind.values():
        batch_size = max(1, MAX_BATCH_ELEMENTS // same_shape[0].numel())
        yield from (same_shape[i : i + batch_size] for i in range(0, len(same_shape), batch_size))


def orthogonalize(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Return U S' V^T for each U S V^T, by five Newton-Schulz iterations (Jordan 2024).

    Singular values above a hundredth of the matrix's norm end between 0.65 and 1.25. On a GPU the iterations run in
    bfloat16, which is accurate enough for a target this rough.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if x.is_cuda else x
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).float()
