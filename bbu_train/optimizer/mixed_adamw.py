"""AdamW for bfloat16 and float32 parameters, in which neither small updates nor small decay is rounded away."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int16, Int32
from torch import Tensor, nn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32, split_float32
from bbu_train.optimizer.float32_update import make_buffer, update_float32


class MixedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) that loses no small update of a bfloat16 parameter, and no weight decay.

    With `has_masters`, the update is applied to a float32 master and the moments are float32. The parameter is the
    master's bfloat16 part, and the state has its `low_bits` (`bbu_train/ops/split_float32.py`). Without masters,
    parameter and moments are bfloat16 alone and are rounded stochastically, so that an update smaller than a rounding
    step still counts on average: 6 bytes per weight instead of 12, with different results. All other parameters must
    be float32.

    torch applies decay on its own: where lr decay is below 3e-8, (1 - lr decay) w rounds to w, and nothing decays. Here
    decay and update are subtracted together, w <- w - (update + lr decay w), and rounded once. As updates vary, the
    rounding goes either way, and over many weights the mean decay is lr decay.

    As in torch's fused optimizers, gradients are divided by `grad_scale`. If `found_inf` is 1, nothing changes: no
    weight, no moment and no step count (the stochastic rounding depends on it). Both are read on the device. On a GPU,
    one kernel does the whole update of a bfloat16 parameter and its state.

    A step that runs out of memory on a GPU can be repeated: `step` allocates what it needs before it writes anything,
    and `num_updates` counts how often it has begun to write. `allocate` takes all that is large when the run begins.
    """

    def __init__(self, param_groups: list[dict[str, Any]], has_masters: bool, **settings: Any) -> None:
        super().__init__(param_groups, fused=True, **settings)
        self.has_masters = has_masters
        device = self.param_groups[0]["params"][0].device
        self.update = _update_for(device)
        self.grad_scale, self.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        in_bfloat16 = [p for group in self.param_groups for p in group["params"] if p.dtype == torch.bfloat16]
        salts = torch.arange(len(in_bfloat16), dtype=torch.int32, device=device)
        self.salts = dict(zip(in_bfloat16, salts, strict=True))
        self.num_updates = 0
        self.buffer: Tensor | None = None

    def allocate(self) -> None:
        """Allocate the whole state, which is zero before the first update, and the memory that `step` works in.

        A second call does nothing.
        """
        if self.buffer is not None:
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._new_state(group, parameter)
        self._load_kernels()
        self.buffer = make_buffer(self._adamw_groups(), self.grad_scale.device)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient. The gradients of bfloat16 parameters are freed."""
        self.allocate()
        if writes := self._prepare():
            self.num_updates += 1  # from here on nothing is allocated, so nothing can fail halfway
            for write in writes:
                write()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into this optimizer's own. torch's method would make a second state beside it.

        Raises InputError if the state has low bits and this optimizer keeps no masters, or the other way round.
        """
        self.allocate()
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group |= {name: value for name, value in saved_group.items() if name != "params"}
            for parameter, index in zip(group["params"], saved_group["params"], strict=True):
                self._load_state(parameter, state_dict["state"].get(index))

    def _load_state(self, parameter: nn.Parameter, saved: dict[str, Any] | None) -> None:
        """Copy the saved state of a parameter. Older checkpoints have none (None) for one that was never updated."""
        state = self.state[parameter]
        if saved is not None and saved.keys() != state.keys():
            raise InputError(
                f"The saved optimizer state of a {str(parameter.dtype).removeprefix('torch.')} weight has "
                f"{', '.join(saved)}; expected {', '.join(state)}. Resume the run with the engine.precision and the "
                "version of bbu_train that it began with."
            )
        for name, tensor in state.items():
            tensor.zero_() if saved is None else tensor.copy_(torch.as_tensor(saved[name]))

    def _new_state(self, _group: dict[str, Any], parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of a parameter before its first update."""
        moment = torch.zeros_like(parameter, dtype=torch.float32 if self.has_masters else parameter.dtype)
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state = {"step": step, "exp_avg": moment, "exp_avg_sq": moment.clone()}
        if parameter.dtype == torch.bfloat16 and self.has_masters:
            state["low_bits"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state

    def _adamw_groups(self) -> list[dict[str, Any]]:
        return self.param_groups

    def _load_kernels(self) -> None:
        """Compile and load the kernels, which takes memory too, by updates that are refused."""
        refused, scalars = torch.ones_like(self.found_inf), torch.zeros(8, device=self.found_inf.device)
        for parameter, salt in self.salts.items():
            if parameter.is_cuda and "exp_avg" in (state := self.state[parameter]):
                moments = state["exp_avg"], state["exp_avg_sq"]
                tensors = parameter.detach(), state.get("low_bits"), *moments, parameter.detach()
                self.update(*tensors, scalars, self.grad_scale, refused, salt)

    def _prepare(self) -> list[Callable[[], None]]:
        """Return the writes of a step, in order. They allocate nothing, but for `update` on a CPU."""
        by_group = [(g, [p for p in g["params"] if p.grad is not None]) for g in self._adamw_groups()]
        trained = [(group, p) for group, parameters in by_group for p in parameters]
        if not trained:
            return []
        taken = 1 - self.found_inf
        writes: list[Callable[[], None]] = [
            partial(torch._foreach_add_, [self.state[parameter]["step"] for _, parameter in trained], taken)
        ]
        in_bfloat16 = [(group, p) for group, p in trained if p.dtype == torch.bfloat16]
        steps = [self.state[parameter]["step"] for _, parameter in in_bfloat16]
        scalars = _send_scalars([group for group, _ in in_bfloat16], steps, taken)
        for (_, parameter), own_scalars in zip(in_bfloat16, scalars, strict=True):
            writes.append(partial(self._update_bfloat16, parameter, self._tensors(parameter), own_scalars))
        for group, parameters in by_group:
            if tensors := [self._tensors(p) for p in parameters if p.dtype != torch.bfloat16]:
                factor = torch.where(self.found_inf != 0, 0.0, -group["lr"] * group["weight_decay"])
                writes.append(
                    partial(update_float32, group, tensors, self.grad_scale, self.found_inf, factor, self.buffer)
                )
        return writes

    def _tensors(self, parameter: nn.Parameter) -> tuple[Tensor, ...]:
        """Return weight, gradient, moments and number of steps of a parameter whose gradient is not None."""
        assert parameter.grad is not None, "step() skips parameters without a gradient"
        state = self.state[parameter]
        tensors = parameter.detach(), parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"], state["step"]
        assert all(tensor.is_contiguous() for tensor in tensors), "a weight is not contiguous"
        return tensors

    def _update_bfloat16(self, parameter: nn.Parameter, tensors: tuple[Tensor, ...], scalars: Tensor) -> None:
        """Update a bfloat16 parameter and free its gradient."""
        weight, gradient, *moments, _ = tensors
        state_tensors = self.state[parameter].get("low_bits"), *moments
        self.update(weight, *state_tensors, gradient, scalars, self.grad_scale, self.found_inf, self.salts[parameter])
        parameter.grad = None


def _update_for(device: torch.device) -> Callable[..., None]:
    if device.type != "cuda":
        return update
    from bbu_train.optimizer import update_kernel  # Triton comes only with torch for GPUs

    return update_kernel.update


def _send_scalars(
    groups: Sequence[dict[str, Any]], steps: Sequence[Tensor], taken: Float[Tensor, ""]
) -> Sequence[Float[Tensor, "8"]]:
    """Return the scalars for `update` of each parameter, in one transfer for which the host does not wait.

    `groups` are the param groups of the parameters, `steps` their numbers of steps before this one. `taken` is 1, or 0
    if this one is refused.
    """
    if not steps:
        return []
    values = [[g["lr"], g["weight_decay"], *(1 - b for b in g["betas"]), *g["betas"], g["eps"]] for g in groups]
    t = (torch.stack(list(steps)) + taken).double().unsqueeze(1)
    on_host = torch.tensor(values, dtype=torch.float64, pin_memory=t.is_cuda)
    table = on_host.to(t.device, non_blocking=True)
    table[:, 4:6] = 1 - table[:, 4:6] ** t  # the betas become the corrections of the moments' bias
    return torch.cat([table, t], dim=1).float().unbind()


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
    w <- w - (lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + lr decay w)

    Without `low_bits`, w, m and v are rounded stochastically. The random bits are a function of t and of `salt`, which
    differs between parameters.
    """
    lr, decay, rate1, rate2, correction1, correction2, eps, t = scalars.unbind()
    before = weight.float() if low_bits is None else merge_float32(weight, low_bits)
    g = gradient.float() / grad_scale
    m = exp_avg.float() + rate1 * (g - exp_avg.float())
    v = exp_avg_sq.float() + rate2 * (g * g - exp_avg_sq.float())
    w = before - (lr * (m / correction1) / ((v / correction2).sqrt() + eps) + lr * decay * before)
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
