"""AdamW's update of float32 parameters, by torch's fused kernel with a weight decay of our own."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

BUCKET_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}  # weights at once: 1 MiB stays in a CPU's cache; 256 MiB on a GPU


def update_float32(
    group: dict[str, Any], tensors: Sequence[tuple[Tensor, ...]], grad_scale: Tensor, found_inf: Tensor
) -> None:
    """Do one step of AdamW in place: w <- w - (update + lr decay w). Nothing changes where `found_inf` is 1.

    The kernel without decay subtracts the update from a buffer that holds -lr decay w, and the buffer is added to w.

    group    a param group of AdamW: its lr, betas, eps and weight_decay
    tensors  weight, gradient, exp_avg and exp_avg_sq of each parameter, all contiguous, and its number of steps, this
             one included
    """
    lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
    constants = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0, "eps": group["eps"]}
    signals = {"grad_scale": grad_scale, "found_inf": found_inf}
    subtract_updates = partial(torch._fused_adamw_, **constants, amsgrad=False, maximize=False, **signals)
    if decay == 0:
        *columns, steps = zip(*tensors, strict=True)
        subtract_updates(*columns, [], steps)
        return
    size = min(BUCKET_ELEMENTS[found_inf.device.type], sum(weight.numel() for weight, *_ in tensors))
    buffer = torch.empty(size, device=found_inf.device)
    factor = torch.where(found_inf != 0, 0.0, -lr * decay)
    for weights, *columns, steps in _split_into_buckets(tensors, size):
        lengths = [weight.numel() for weight in weights]
        changes = buffer[: sum(lengths)].split(lengths)
        for weight, change in zip(weights, changes, strict=True):
            torch.mul(weight, factor, out=change)
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
