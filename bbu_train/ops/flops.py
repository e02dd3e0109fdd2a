"""Arithmetic: what a product costs, and how many operations a second a device can do at best.

Useful arithmetic is what the samples of a step need, forward and backward: no padding, no recomputation, logits only
where they are supervised, and of what is frozen no gradients. A multiplication is one operation, an addition another.
Matrix products and attention count, each part of the model its own; all else is left out.
"""

import torch

SIDE = 8192  # of the square matrices that are multiplied to see how fast a device can be


def matrix(trains: bool, passes: bool) -> int:
    """Operations for each weight of a matrix and each token: 2 in the forward pass, 2 for the gradient of the weight
    if it `trains`, and 2 for that of the input if it `passes` one on to what lies before."""
    return 2 + 2 * trains + 2 * passes


def attention(passes: bool) -> int:
    """Operations for each channel of each pair of a query and a key: two products forward, and four backward if
    what lies before needs a gradient."""
    return 4 + 8 * passes


def best_rate(device: torch.device, precision: str) -> int:
    """Operations a second of a large product in the precision of the run, measured now in about 0.1 s (0.5 s in fp32).

    0 on a CPU, whose share is not logged: with this product at their start about one in six resumed runs on a CPU
    differed in a bit from the run that was never stopped, why is not known, and without it none did.
    """
    if device.type != "cuda":
        return 0
    rate = matrix_rate(device, torch.float32 if precision == "fp32" else torch.bfloat16, num_before=3, num_products=20)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)  # the peak that is logged is the run's own
    return round(rate)


def matrix_rate(device: torch.device, dtype: torch.dtype, num_before: int, num_products: int) -> float:
    """Operations a second of so many products of random numbers on a GPU, after some that are not counted.

    Random, because a product of zeros draws less power and runs faster than any of real numbers.
    """
    generator = torch.Generator(device).manual_seed(0)  # its own: the run's random numbers stay what they were
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype, generator=generator) for _ in range(2))
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(num_before + num_products):
        if i == num_before:
            began.record()
        a @ b
    ended.record()
    ended.synchronize()
    return num_products * 2 * SIDE**3 / (began.elapsed_time(ended) / 1e3)
