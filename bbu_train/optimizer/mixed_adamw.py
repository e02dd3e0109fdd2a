"""AdamW for bfloat16 matrices, with or without float32 masters."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int16, Int32
from torch import Tensor, nn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32, split_float32


class MixedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) whose bfloat16 parameters lose no small update to rounding.

    With `has_masters`, the update is applied to a float32 master and the moments are float32. The parameter is the
    master's bfloat16 part, and the state has its `low_bits` (`bbu_train/ops/split_float32.py`). Without masters,
    parameter and moments are bfloat16 alone and are rounded stochastically, so that an update smaller than a rounding
    step still counts on average: 6 bytes per weight instead of 12, with different results. Parameters of other dtypes
    are left to torch's fused AdamW.

    As in torch's fused optimizers, gradients are divided by `grad_scale`. If `found_inf` is not 0, no weight and no
    moment changes, and only the step count advances. Both are read on the device. On a GPU, one kernel does the whole
    update of a parameter and its state.
    """

    def __init__(self, param_groups: list[dict[str, Any]], has_masters: bool, **settings: Any) -> None:
        super().__init__(param_groups, fused=True, **settings)
        self.has_masters = has_masters
        device = self.param_groups[0]["params"][0].device
        self.update = _update_for(device)
        self.grad_scale, self.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        num_bfloat16 = sum(1 for _ in self._bfloat16_parameters())
        self.salts = torch.arange(num_bfloat16, dtype=torch.int32, device=device)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient. The gradients of bfloat16 parameters are freed."""
        scalars_of: dict[tuple[str, float, int], Tensor] = {}  # one small transfer per group, not per parameter
        for (group, parameter), salt in zip(self._bfloat16_parameters(), self.salts, strict=True):
            if parameter.grad is None:
                continue
            state = self._get_state(parameter)
            state["step"] += 1
            key = group["name"], group["weight_decay"], state["step"]
            if key not in scalars_of:
                scalars_of[key] = _send_scalars(group, state["step"], parameter.device)
            self._update(parameter, state, scalars_of[key], salt)
            parameter.grad = None
        super().step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state. torch's own method would cast low bits and moments to the parameters' dtype.

        Raises InputError if the state has low bits and this optimizer keeps no masters, or the other way round.
        """
        super().load_state_dict(state_dict)
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(indices, parameters, strict=True):
            if parameter.dtype == torch.bfloat16 and index in state_dict["state"]:
                saved = state_dict["state"][index]
                if ("low_bits" in saved) != self.has_masters:
                    raise InputError(
                        f"The saved optimizer state of a bfloat16 weight has {', '.join(saved)}; expected a state "
                        f"{'with' if self.has_masters else 'without'} low_bits. Resume the run with the "
                        "engine.precision and the version of bbu_train that it began with."
                    )
                self.state[parameter] = {
                    name: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                    for name, value in saved.items()
                }

    def _bfloat16_parameters(self) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
        """Yield each bfloat16 parameter with its group."""
        for group in self.param_groups:
            yield from ((group, parameter) for parameter in group["params"] if parameter.dtype == torch.bfloat16)

    def _get_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Return the state of a bfloat16 parameter, which is zero before its first update."""
        state = self.state[parameter]
        if not state:
            moment = torch.zeros_like(parameter, dtype=torch.float32 if self.has_masters else torch.bfloat16)
            state |= {"step": 0, "exp_avg": moment, "exp_avg_sq": moment.clone()}
            if self.has_masters:
                state["low_bits"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state

    def _update(self, parameter: nn.Parameter, state: dict[str, Any], scalars: Tensor, salt: Tensor) -> None:
        assert parameter.grad is not None, "step() skips parameters without a gradient"
        state_tensors = state.get("low_bits"), state["exp_avg"], state["exp_avg_sq"]
        tensors = parameter.detach(), *state_tensors, parameter.grad.contiguous()
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors), "a weight is not contiguous"
        self.update(*tensors, scalars, self.grad_scale, self.found_inf, salt)


def _update_for(device: torch.device) -> Callable[..., None]:
    if device.type != "cuda":
        return update
    from bbu_train.optimizer import update_kernel  # Triton comes only with torch for GPUs

    return update_kernel.update


def _send_scalars(group: dict[str, Any], step: int, device: torch.device) -> Float[Tensor, "8"]:
    """Send a group's scalars for `update` to the device, without making the host wait."""
    beta1, beta2 = group["betas"]
    corrections = 1 - beta1**step, 1 - beta2**step
    values = [group["lr"], group["weight_decay"], 1 - beta1, 1 - beta2, *corrections, group["eps"], step]
    on_host = torch.tensor(values, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


def update(
    weight: BFloat16[Tensor, "*n"],
    low_bits: Int16[Tensor, "*n"] | None,
    exp_avg: Float[Tensor, "*n"],
    exp_avg_sq: Float[Tensor, "*n"],
    gradient: BFloat16[Tensor, "*n"],
    scalars: Float[Tensor, "8"],
    grad_scale: Float[Tensor, ""],
    found_inf: Float[Tensor, ""],
    salt: Int32[Tensor, ""],
) -> None:
    """Do one step of AdamW in float32, in place. Nothing changes where `found_inf` is not 0.

    m <- m + (1 - b1) (g - m),  v <- v + (1 - b2) (g^2 - v),
    w <- (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Without `low_bits`, w, m and v are rounded stochastically. The random bits are a function of t and of `salt`, which
    differs between parameters.
    """
    lr, decay, rate1, rate2, correction1, correction2, eps, t = scalars.unbind()
    before = weight.float() if low_bits is None else merge_float32(weight, low_bits)
    g = gradient.float() / grad_scale
    m = exp_avg.float() + rate1 * (g - exp_avg.float())
    v = exp_avg_sq.float() + rate2 * (g * g - exp_avg_sq.float())
    w = (1 - lr * decay) * before - lr * (m / correction1) / ((v / correction2).sqrt() + eps)
    if low_bits is None:
        positions = torch.arange(w.numel(), dtype=torch.int32, device=w.device).view(w.shape)
        bits = lowbias32(positions + lowbias32(salt * 1_000_003 + t.int()))
        # Each of the three roundings uses 16 of the 32 random bits. These overlap, so the roundings are correlated, but
        # each one is still unbiased.
        w, m, v = (round_stochastically(x, bits >> shift) for x, shift in ((w, 0), (m, 16), (v, 8)))
        updated = [(weight, w)]
    else:
        updated = list(zip((weight, low_bits), split_float32(w), strict=True))
    is_refused = found_inf != 0
    for old, new in (*updated, (exp_avg, m), (exp_avg_sq, v)):
        old.copy_(torch.where(is_refused, old, new))


def lowbias32(x: Int32[Tensor, "*n"]) -> Int32[Tensor, "*n"]:
    """Hash 32-bit integers one-to-one to random bits (Wellons 2018). Products wrap around."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975
    return x ^ ((x >> 16) & 0xFFFF)


def round_stochastically(x: Float[Tensor, "*n"], bits: Int32[Tensor, "*n"]) -> BFloat16[Tensor, "*n"]:
    """Round to one of the two neighbouring bfloat16 numbers, at random so that the mean is `x`.

    bfloat16 keeps the upper 16 bits of a float32. Adding 16 random bits to the lower 16 carries into the upper ones
    with a probability equal to the fraction that plain truncation would lose.
    """
    carried = x.view(torch.int32) + (bits & 0xFFFF)
    return (carried & -0x10000).view(torch.float32).bfloat16()
