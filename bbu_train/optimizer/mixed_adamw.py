"""AdamW for matrices in bfloat16, with or without float32 masters beside them."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import BFloat16, Float, Int16, Int32
from torch import Tensor, nn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32, split_float32


class MixedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) whose bfloat16 parameters lose no small update to rounding.

    With `masters` a float32 number is updated, of which the parameter is the rounded one and the state has the rest
    (`bbu_train/ops/split_float32.py`), and moments are float32. Without, parameter and moments are bfloat16 alone, and
    are rounded stochastically, so that an update smaller than a rounding step still counts on average: 6 bytes a number
    instead of 12, and another result. Parameters of other dtypes are left to torch's fused AdamW.

    As torch's fused optimizers do, it divides gradients by `grad_scale` and changes nothing where `found_inf` is 1,
    both on the device. On a GPU one kernel does all that happens to a parameter, its gradient and its state.
    """

    def __init__(self, groups: list[dict], masters: bool, **settings):
        super().__init__(groups, fused=True, **settings)
        self.masters = masters
        device = self.param_groups[0]["params"][0].device
        self.update = _update_for(device)
        self.grad_scale, self.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        self.salts = torch.arange(sum(1 for _ in self._low()), dtype=torch.int32, device=device)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient. The gradients of bfloat16 parameters are let go."""
        settings: dict[tuple, Tensor] = {}  # one small transfer for a group, not for a parameter
        for (group, parameter), salt in zip(self._low(), self.salts, strict=True):
            if parameter.grad is None:
                continue
            state = self._state_of(parameter)
            state["step"] += 1
            key = group["name"], group["weight_decay"], state["step"]
            if key not in settings:
                settings[key] = _settings(group, state["step"], parameter.device)
            self._update(parameter, state, settings[key], salt)
            parameter.grad = None
        super().step()

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, which alone would turn low_bits and moments into the parameters' dtype.

        Raises InputError for a state with low_bits where this optimizer keeps none, or without them where it does.
        """
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if parameter.dtype == torch.bfloat16 and number in state_dict["state"]:
                saved = state_dict["state"][number]
                if ("low_bits" in saved) != self.masters:
                    raise InputError(
                        f"What the optimizer saved of a bfloat16 weight is {', '.join(saved)}; expected is a state "
                        f"{'with' if self.masters else 'without'} low_bits. Resume the run with the engine.precision and "
                        "the version of bbu_train that it began with."
                    )
                self.state[parameter] = {
                    name: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                    for name, value in saved.items()
                }

    def _low(self) -> Iterator[tuple[dict, nn.Parameter]]:
        """The bfloat16 parameters, each with its group."""
        for group in self.param_groups:
            yield from ((group, parameter) for parameter in group["params"] if parameter.dtype == torch.bfloat16)

    def _state_of(self, parameter: nn.Parameter) -> dict:
        state = self.state[parameter]
        if not state:
            moment = torch.zeros_like(parameter, dtype=torch.float32 if self.masters else torch.bfloat16)
            state |= {"step": 0, "exp_avg": moment, "exp_avg_sq": moment.clone()}
            if self.masters:
                state["low_bits"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state

    def _update(self, parameter: nn.Parameter, state: dict, settings: Tensor, salt: Tensor) -> None:
        kept = state.get("low_bits"), state["exp_avg"], state["exp_avg_sq"]
        tensors = parameter.detach(), *kept, parameter.grad.contiguous()
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors), "a weight is laid out in strides"
        self.update(*tensors, settings, self.grad_scale, self.found_inf, salt)


def _update_for(device: torch.device) -> Callable:
    if device.type != "cuda":
        return update
    from bbu_train.optimizer import update_kernel  # Triton comes with torch for GPUs only

    return update_kernel.update


def _settings(group: dict, step: int, device: torch.device) -> Float[Tensor, "8"]:
    """What `update` reads of a group, on the device: the host does not wait for it."""
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
    settings: Float[Tensor, "8"],
    grad_scale: Float[Tensor, ""],
    found_inf: Float[Tensor, ""],
    salt: Int32[Tensor, ""],
) -> None:
    """One step of AdamW in float32, in place; no number changes where `found_inf` is not 0.

    m <- m + (1 - b1) (g - m),  v <- v + (1 - b2) (g^2 - v),
    w <- (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Without low_bits all three are rounded stochastically, from random bits that are a function of t and `salt`.
    """
    lr, decay, rate1, rate2, correction1, correction2, eps, t = settings.unbind()
    before = weight.float() if low_bits is None else merge_float32(weight, low_bits)
    g = gradient.float() / grad_scale
    m = exp_avg.float() + rate1 * (g - exp_avg.float())
    v = exp_avg_sq.float() + rate2 * (g * g - exp_avg_sq.float())
    w = (1 - lr * decay) * before - lr * (m / correction1) / ((v / correction2).sqrt() + eps)
    if low_bits is None:
        places = torch.arange(w.numel(), dtype=torch.int32, device=w.device).view(w.shape)
        bits = mix(places + mix(salt * 1_000_003 + t.int()))
        # Each takes 16 of the 32 bits; that some are shared makes no mean wrong.
        w, m, v = (round_stochastically(x, bits >> shift) for x, shift in ((w, 0), (m, 16), (v, 8)))
        updated = [(weight, w)]
    else:
        updated = list(zip((weight, low_bits), split_float32(w), strict=True))
    is_refused = found_inf != 0
    for kept, new in (*updated, (exp_avg, m), (exp_avg_sq, v)):
        kept.copy_(torch.where(is_refused, kept, new))


def mix(x: Int32[Tensor, "*n"]) -> Int32[Tensor, "*n"]:
    """Whole numbers to random bits: a one-to-one hash of 32 bits (Wellons 2018, "lowbias32"). Products wrap around."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975
    return x ^ ((x >> 16) & 0xFFFF)


def round_stochastically(x: Float[Tensor, "*n"], bits: Int32[Tensor, "*n"]) -> BFloat16[Tensor, "*n"]:
    """To one of the two neighbouring bfloat16 numbers, to the nearer one more often, so that the mean is `x`.

    A float32 number is a bfloat16 one and 16 bits more: those are carried over if they exceed 16 random ones.
    """
    carried = x.view(torch.int32) + (bits & 0xFFFF)
    return (carried & -0x10000).view(torch.float32).bfloat16()
