"""AdamW's update of float32 parameters, by torch's fused kernel with a weight decay of our own."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

BUCKET_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}  # weights at once: 1 MiB stays in a CPU's cache; 256 MiB on a GPU


def make_buffer(groups: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
    """Return the buffer that `update_float32` needs for these param groups: as large as the largest of them needs."""
    sizes = [sum(p.numel() for p in g["params"] if p.dtype == torch.float32) for g in groups if g["weight_decay"] != 0]
    limit = BUCKET_ELEMENTS["cpu" if device.type == "cpu" else "cuda"]
    return torch.empty(min(limit, max(sizes, default=0)), device=device)


def update_float32(
    group: dict[str, Any],
    tensors: Sequence[tuple[Tensor, ...]],
    grad_scale: Tensor,
    found_inf: Tensor,
    decay_factor: Tensor,
    buffer: Tensor,
) -> None:
    """Do one step of AdamW in place: w <- w - (update + lr decay w). Nothing changes where `found_inf` is 1.

    The kernel without decay subtracts the update from a buffer that holds -lr decay w, and the buffer is added to w.
    Nothing is allocated.

    group         a param group of AdamW: its lr, betas, eps and weight_decay
    tensors       weight, gradient, exp_avg and exp_avg_sq of each parameter, all contiguous, and its number of steps,
                  this one included
    decay_factor  -lr decay, or 0 where `found_inf` is 1
    buffer        see `make_buffer`
    """
    lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
    constants = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0, "eps": group["eps"]}
    signals = {"grad_scale": grad_scale, "found_inf": found_inf}
    subtract_updates = partial(torch._fused_adamw_, **constants, amsgrad=False, maximize=False, **signals)
    if decay == 0:
        *columns, steps = zip(*tensors, strict=True)
        subtract_updates(*columns, [], steps)
        return
    for weights, *columns, steps in _split_into_buckets(tensors, buffer.numel()):
        lengths = [weight.numel() for weight in weights]
        changes = buffer[: sum(lengths)].split(lengths)
        for weight, change in zip(weights, changes, strict=True):
            torch.mul(weight, decay_factor, out=change)
        subtract_updates(changes, *columns, [], steps)
        torch._foreach_add_(weights, changes)


def _split_into_buckets(
    tensors: Sequence[tuple[Tensor, ...]], max_elements: int
) -> Iterator[tuple[tuple[Tensor, ...], ...]]:
    """Yield the columns of `tensors` in flat pieces, with up to `max_elements` weights at once."""
    bucket: list[tuple[Tensor, ...]] = []
    size = 0
    for *columns, step in tensors:
        for pieces in zip(*(tensor.view(-1).split(max_elements) for tensor in columns), strict=True):
            if size + pieces[0].numel() > max_elements:
                yield tuple(zip(*bucket, strict=True))
                bucket, size = [], 0
            bucket.append((*pieces, step))
            size += pieces[0].numel()
    yield tuple(zip(*bucket, strict=True))
