"""Arithmetic: what a product costs, and how many operations a second a device can do at best.

Useful arithmetic is what the samples of a step need, forward and backward: no padding, no recomputation, logits only
where they are supervised, and of what is frozen no gradients. A multiplication is one operation, an addition another.
Matrix products and attention count, each part of the model its own; all else is left out.
"""

from dataclasses import dataclass

import torch

SIDE = 8192  # of the square matrices that are multiplied to see how fast a device can be


@dataclass(frozen=True)
class Sizes:
    """What decides how much arithmetic some samples need: plain numbers, in which padding has no part.

    A square is the number of pairs of a query and a key among the tokens of a sample or of a caption, or among the
    patches of a picture or of a window of the vision tower; a causal mask leaves half of them. `patches` and the
    squares of pictures and windows are what the tower has to read: with `PictureFormat.teachers_apart` the students'
    pictures, as a cache is to hold the others. `merged` counts the image tokens of all pictures. `samples` counts those
    that the head reads, which are the annotated ones, and `memory` the entries of their memories; `caption_memory`
    counts pairs of a caption's token and an entry of its sample's memory, `object_memory` those of an object and such
    an entry, and `object_squares` those of two objects of a sample. What ends with `_seen` are those of the entries, or
    of the pairs, that are of an image token: a head may split it.
    """

    tokens: int
    token_squares: int
    supervised: int
    patches: int
    picture_squares: int
    window_squares: int
    merged: int
    samples: int
    memory: int
    memory_image: int
    captions: int
    caption_tokens: int
    caption_squares: int
    caption_memory: int
    caption_memory_image: int
    object_squares: int
    object_memory: int
    object_memory_image: int


def matmul_flops(trains: bool, passes: bool) -> int:
    """Operations for each weight of a matrix and each token: 2 in the forward pass, 2 for the gradient of the weight
    if it `trains`, and 2 for that of the input if it `passes` one on to what lies before."""
    return 2 + 2 * trains + 2 * passes


def attention_flops(passes: bool) -> int:
    """Operations for each channel of each pair of a query and a key: two products forward, and four backward if
    what lies before needs a gradient."""
    return 4 + 8 * passes


def peak_matmul_rate(device: torch.device, precision: str) -> int:
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


def peak_bf16_flops(device: torch.device) -> int:
    return 0
