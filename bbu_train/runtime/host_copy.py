"""Copying tensors from the device to the host without blocking."""

from collections.abc import Callable

import torch
from torch import Tensor


def copy_to_host(values: Tensor) -> Callable[[], Tensor]:
    """Start copying `values`, without gradient, to the host. Return a function that waits for the copy and returns it.

    That function does not wait for work that the device was given later, as `tolist` and `item` would.
    """
    on_host = values.detach().to("cpu", non_blocking=True)
    if not values.is_cuda:
        return lambda: on_host
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return on_host

    return wait
