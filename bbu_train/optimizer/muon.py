"""Muon for the matrices of a network's layers, AdamW for what is left: embeddings, norms, biases and heads."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32, split_float32
from bbu_train.optimizer.groups import torch_groups
from bbu_train.optimizer.mixed_adamw import MixedAdamW

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of x, x^3 and x^5: the steepest at 0 that keep 1 near 1 (Jordan 2024)
NUM_ITERATIONS = 5
RMS_OF_ADAMW = 0.2  # of an update of rate 1, about (Liu et al. 2025)
MOST_AT_ONCE = 1 << 26  # numbers of alike matrices that are updated together: a quarter of a GiB for each temporary


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
    """Freeze the groups of rate 0 and give the others to Muon and AdamW, at the same rates.

    Muon takes the matrices in whose names the regular expression `matrices` is found. The rest is as in
    `groups.build`, but that "pure_bf16" is refused: Muon keeps float32 masters.
    """
    if precision == "pure_bf16":
        raise InputError("optimizer=muon keeps float32 masters: take engine.precision=bf16, or optimizer=adamw.")
    if not 0 <= momentum < 1:
        raise InputError(f"optimizer.momentum is {momentum}: expected a number from 0 to below 1.")
    try:
        chosen = {p for name, p in model.named_parameters() if p.ndim == 2 and re.search(matrices, name)}
    except re.error as error:
        raise InputError(f'optimizer.matrices is "{matrices}": not a regular expression ({error}).') from error
    divided = []
    for group in torch_groups(model, groups, betas, eps, weight_decay):
        its, others = ([p for p in group["params"] if (p in chosen) == is_its] for is_its in (True, False))
        divided += [{**group, "params": its, "momentum": momentum}] if its else []
        divided += [{**group, "params": others}] if others else []
    if not any("momentum" in group for group in divided):
        raise InputError(f'optimizer.matrices is "{matrices}": found in the name of no matrix that is trained.')
    return Muon(divided, masters=True, betas=tuple(betas), eps=eps)


class Muon(MixedAdamW):
    """Muon (Jordan et al. 2024) for the groups that have a "momentum", MixedAdamW for the others.

    M <- M + (1 - mu) (G - M),  W <- (1 - lr decay) W - 0.2 lr sqrt(max(n, m)) O(G + mu (M - G))

    for W of (n, m), where O moves all singular values close to 1. By the factor an update is as large as AdamW's, so
    that a rate means the same for both (Liu et al. 2025). As in torch.optim.Muon with "match_rms_adamw", but that
    matrices of one shape are updated together, of bfloat16 ones the float32 masters, and that `grad_scale` and
    `found_inf` are read on the device.
    """

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient. The gradients of bfloat16 parameters and of matrices go."""
        for group in self.param_groups:
            if "momentum" in group:
                for alike in _alike(p for p in group["params"] if p.grad is not None):
                    self._update_together(group, alike)
        super().step()

    def _update_together(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        states = [self._momentum_of(parameter) for parameter in parameters]
        moments = [state["momentum"] for state in states]
        stored = [parameter.detach() for parameter in parameters]
        low_bits = [state["low_bits"] for state in states if "low_bits" in state]
        gradients = torch.stack([parameter.grad for parameter in parameters]).float() / self.grad_scale
        before, weights = torch.stack(moments), torch.stack(stored)
        weights = merge_float32(weights, torch.stack(low_bits)) if low_bits else weights
        moment = before.lerp(gradients, 1 - group["momentum"])
        direction = orthogonalized(gradients.lerp(moment, group["momentum"]))
        rate = group["lr"] * RMS_OF_ADAMW * math.sqrt(max(parameters[0].shape))
        updated = (1 - group["lr"] * group["weight_decay"]) * weights - rate * direction
        is_refused = self.found_inf != 0
        torch._foreach_add_([state["step"] for state in states], 1 - self.found_inf)
        torch._foreach_copy_(moments, list(torch.where(is_refused, before, moment)))
        updated = torch.where(is_refused, weights, updated)
        if low_bits:
            updated, updated_low_bits = split_float32(updated)
            torch._foreach_copy_(low_bits, list(updated_low_bits))
        torch._foreach_copy_(stored, list(updated))
        for parameter in parameters:
            parameter.grad = None

    def _momentum_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)  # torch's AdamW wants one when it loads a state
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
            if parameter.dtype == torch.bfloat16:
                state["low_bits"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state


def _alike(parameters: Iterator[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Those of one shape and dtype together, MOST_AT_ONCE numbers at most unless one alone has more."""
    kinds: dict[tuple, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
    for its in kinds.values():
        number = max(1, MOST_AT_ONCE // its[0].numel())
        yield from (its[i : i + number] for i in range(0, len(its), number))


def orthogonalized(matrices: Float[Tensor, "number rows columns"]) -> Float[Tensor, "number rows columns"]:
    """U S' V^T for each U S V^T, by five steps of Newton and Schulz (Jordan 2024).

    What was above a hundredth of the matrix's norm in S is between 0.65 and 1.25 in S'. In bfloat16 on a GPU, which so
    rough an aim allows.
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
