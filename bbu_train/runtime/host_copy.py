"""Numbers on their way from the device to the host."""

from collections.abc import Callable

import torch
from torch import Tensor


def copy_to_host(values: Tensor) -> Callable[[], Tensor]:
    """Send `values`, without gradient, to the host; what comes back waits for them alone, and gives them.

    What the device is told to do in between, it does meanwhile. `tolist` and `item` would wait for that, too.
    """
    on_host = values.detach().to("cpu", non_blocking=True)
    if not values.is_cuda:
        return lambda: on_host
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> Tensor:
        arrived.synchronize()
        return on_host

    return wait
