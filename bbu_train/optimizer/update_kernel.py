"""`mixed_adamw.update` as one Triton kernel, which reads and writes each number once."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK, NUM_WARPS = 1024, 8  # four numbers per thread: 16 bytes of float32


def update(
    weight: Tensor,
    low_bits: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    scalars: Tensor,
    grad_scale: Tensor,
    found_inf: Tensor,
    salt: Tensor,
) -> None:
    """Take the arguments of `mixed_adamw.update`, contiguous and on a GPU."""
    size = weight.numel()
    arguments = weight, low_bits, exp_avg, exp_avg_sq, gradient, scalars, grad_scale, found_inf, salt, size
    _kernel[(triton.cdiv(size, BLOCK),)](*arguments, BLOCK, num_warps=NUM_WARPS)


@triton.jit
def _kernel(
    weight, low_bits, exp_avg, exp_avg_sq, gradient, scalars, grad_scale, found_inf, salt, size, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(found_inf) == 0:
        offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < size
        lr, decay = tl.load(scalars), tl.load(scalars + 1)
        rate1, rate2 = tl.load(scalars + 2), tl.load(scalars + 3)
        correction1, correction2 = tl.load(scalars + 4), tl.load(scalars + 5)
        eps, t = tl.load(scalars + 6), tl.load(scalars + 7)

        g = tl.load(gradient + offsets, mask).to(tl.float32) / tl.load(grad_scale)
        m = tl.load(exp_avg + offsets, mask).to(tl.float32)
        v = tl.load(exp_avg_sq + offsets, mask).to(tl.float32)
        w = tl.load(weight + offsets, mask)
        w = w.to(tl.float32) if low_bits is None else _merge_float32(w, tl.load(low_bits + offsets, mask))
        m += rate1 * (g - m)
        v += rate2 * (g * g - v)
        w = w - (lr * (m / correction1) / (tl.sqrt(v / correction2) + eps) + lr * decay * w)
        if low_bits is None:
            seed = _lowbias32(tl.load(salt).to(tl.uint32) * 1_000_003 + t.to(tl.uint32))
            bits = _lowbias32(offsets.to(tl.uint32) + seed)
            w, m, v = _round(w, bits), _round(m, bits >> 16), _round(v, bits >> 8)
            tl.store(weight + offsets, w, mask)
        else:
            bits = w.to(tl.int32, bitcast=True)
            high = (bits + 0x8000) >> 16
            tl.store(weight + offsets, high.to(tl.int16).to(tl.bfloat16, bitcast=True), mask)
            tl.store(low_bits + offsets, (bits - (high << 16)).to(tl.int16), mask)
        tl.store(exp_avg + offsets, m, mask)
        tl.store(exp_avg_sq + offsets, v, mask)


@triton.jit
def _merge_float32(weight, low_bits):
    high = weight.to(tl.int16, bitcast=True).to(tl.int32) << 16
    return (high + low_bits.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def _lowbias32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _round(x, bits):
    carried = x.to(tl.uint32, bitcast=True) + (bits & 0xFFFF)
    return (carried & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)
