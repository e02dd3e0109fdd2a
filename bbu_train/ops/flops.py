"""Counting arithmetic operations, and the operations a second that a device can reach.

Model FLOPs are the operations that the samples of a step need, forward and backward. They include no padding and no
recomputation, logits only of supervised tokens, and no gradients of frozen weights. A multiplication and an addition
are one operation each. Only matrix products and attention are counted; each part of the model counts its own.
"""

import re
from dataclasses import dataclass

import torch

SIDE = 8192  # of the square matrices that are multiplied to measure a device's speed

# Dense bfloat16 tensor-core rate with float32 accumulation, in 10^12 operations a second, by the name that CUDA gives
# the card. Data sheets that print the rate with 2:4 sparsity only are halved. A name must match to its end: a laptop
# card, a MIG slice or a cut-down variant of a name is another device.
DENSE_BF16_TFLOPS = {
    r"GB200": 2500,  # NVIDIA GB200 NVL72 page: 360 PFLOPS with sparsity for 72 GPUs
    r"B200": 2250,  # NVIDIA HGX page: 36 PFLOPS with sparsity for 8 GPUs
    r"H200": 989.5,  # NVIDIA H200 data sheet, SXM: 1,979 with sparsity
    r"H200 NVL": 835.5,  # NVIDIA H200 data sheet: 1,671 with sparsity
    r"H100 80GB HBM3": 989.5,  # NVIDIA H100 data sheet, SXM: 1,979 with sparsity
    r"H100 NVL": 835.5,  # NVIDIA H100 data sheet: 1,671 with sparsity
    r"H100 PCIe": 756.5,  # NVIDIA H100 data sheet of 2022: 1,513 with sparsity
    r"H800": 989.5,  # SXM; as H100, with a slower NVLink
    r"H800 PCIe": 756.5,  # as H100 PCIe
    r"A100-(SXM4|PCIE)-[48]0GB|A100 80GB PCIe": 312,  # NVIDIA A100 data sheet
    r"A800-(SXM4|PCIE)-[48]0GB|A800 80GB PCIe": 312,  # as A100, with a slower NVLink
    r"A40": 149.7,  # NVIDIA A40 data sheet
    r"A10": 125,  # NVIDIA A10 data sheet
    r"L40S": 362.05,  # NVIDIA L40S data sheet
    r"L4": 121,  # NVIDIA L4 data sheet: 242 with sparsity
    r"RTX 6000 Ada Generation": 364.2,  # NVIDIA Ada architecture white paper for professional cards
    r"GeForce RTX 5090": 209.5,  # NVIDIA RTX Blackwell architecture white paper
    r"GeForce RTX 4090": 165.2,  # NVIDIA Ada architecture white paper
    r"GeForce RTX 3090": 71,  # NVIDIA GA102 architecture white paper
}


@dataclass(frozen=True)
class Sizes:
    """The amount of data that decides how much arithmetic some samples need: plain integers, without padding.

    Fields that end in `_squares` count the (query, key) pairs of self-attention: sums of squared lengths. A causal mask
    leaves half of them. Fields that end in `_image` count image tokens only, as a head may split each into several.

    tokens                tokens of the conversations
    token_squares         pairs of tokens of the same conversation
    supervised            tokens with a language loss
    patches               patches that the vision tower reads; with `PictureFormat.teachers_apart` those of the
                          students' pictures only, because the features of the teachers' pictures are cached
    picture_squares       pairs of these patches in the same picture
    window_squares        pairs of these patches in the same attention window
    merged                image tokens of all pictures
    samples               samples that the head reads: those with an annotated student's picture
    memory                entries of their detection memories
    memory_image          image tokens among these entries
    captions              captions of their objects, one for each object
    caption_tokens        tokens of these captions
    caption_squares       pairs of tokens of the same caption
    caption_memory        pairs of a caption token and an entry of its sample's memory
    caption_memory_image  those of these pairs whose entry is an image token
    object_squares        pairs of objects of the same sample
    object_memory         pairs of an object and an entry of its sample's memory
    object_memory_image   those of these pairs whose entry is an image token
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


def matmul_flops(needs_weight_grad: bool, needs_input_grad: bool) -> int:
    """Return the operations for each weight of a matrix and each token.

    2 in the forward pass, 2 for the gradient of the weight if it is needed, and 2 for the gradient of the input if that
    is needed, that is, if anything before the matrix trains.
    """
    return 2 + 2 * needs_weight_grad + 2 * needs_input_grad


def attention_flops(needs_input_grad: bool) -> int:
    """Return the operations for each channel of each (query, key) pair.

    Two products forward, and four backward if the gradient of the input is needed.
    """
    return 4 + 8 * needs_input_grad


def peak_bf16_flops(device: torch.device) -> int:
    """Return the data sheet's dense bfloat16 rate of a GPU, in operations a second; 0 on an unknown GPU or a CPU."""
    return peak_bf16_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else 0


def peak_bf16_flops_of(name: str) -> int:
    """Return the same rate of the GPU that CUDA calls `name`, such as "NVIDIA H200"; 0 if unknown."""
    for pattern, tflops in DENSE_BF16_TFLOPS.items():
        if re.fullmatch(rf"(NVIDIA )?({pattern})", name):
            return round(tflops * 1e12)
    return 0


def measured_matmul_flops(device: torch.device, precision: str) -> int:
    """Measure the operations a second of a large product in the run's precision, in about 0.1 s (0.5 s in fp32).

    Return 0 on a CPU without measuring. When CPU runs began with this product, about one in six resumed runs differed
    in a bit from the uninterrupted run, for an unknown reason; without it none did.
    """
    if device.type != "cuda":
        return 0
    rate = matmul_flops_per_second(
        device, torch.float32 if precision == "fp32" else torch.bfloat16, num_warmup=3, num_products=20
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)  # so that the logged peak is the run's own
    return round(rate)


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, num_warmup: int, num_products: int) -> float:
    """Measure the operations a second of `num_products` products on a GPU, after `num_warmup` others.

    The matrices are random, because a product of zeros draws less power and runs faster than one of real data.
    """
    generator = torch.Generator(device).manual_seed(0)  # separate: the run's random numbers must not change
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype, generator=generator) for _ in range(2))
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(num_warmup + num_products):
        if i == num_warmup:
            began.record()
        a @ b
    ended.record()
    ended.synchronize()
    return num_products * 2 * SIDE**3 / (began.elapsed_time(ended) / 1e3)
