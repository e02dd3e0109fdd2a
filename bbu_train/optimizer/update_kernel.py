"""`mixed_adamw.update` as one kernel: each number is read once and written once."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK, NUM_WARPS = 1024, 8  # four numbers a thread: 16 bytes of float32


def update(
    weight: Tensor,
    low_bits: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    settings: Tensor,
    grad_scale: Tensor,
    found_inf: Tensor,
    salt: Tensor,
) -> None:
    """The arguments of `mixed_adamw.update`, contiguous and on a GPU."""
    size = weight.numel()
    scalars = settings, grad_scale, found_inf, salt
    arguments = weight, low_bits, exp_avg, exp_avg_sq, gradient, *scalars, size
    _kernel[(triton.cdiv(size, BLOCK),)](*arguments, BLOCK, num_warps=NUM_WARPS)


@triton.jit
def _kernel(
    weight, low_bits, exp_avg, exp_avg_sq, gradient, settings, grad_scale, found_inf, salt, size, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(found_inf) == 0:
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = places < size
        lr, decay = tl.load(settings), tl.load(settings + 1)
        rate1, rate2 = tl.load(settings + 2), tl.load(settings + 3)
        correction1, correction2 = tl.load(settings + 4), tl.load(settings + 5)
        eps, t = tl.load(settings + 6), tl.load(settings + 7)

        g = tl.load(gradient + places, mask).to(tl.float32) / tl.load(grad_scale)
        m = tl.load(exp_avg + places, mask).to(tl.float32)
        v = tl.load(exp_avg_sq + places, mask).to(tl.float32)
        w = tl.load(weight + places, mask)
        w = w.to(tl.float32) if low_bits is None else _whole(w, tl.load(low_bits + places, mask))
        m += rate1 * (g - m)
        v += rate2 * (g * g - v)
        w = (1 - lr * decay) * w - lr * (m / correction1) / (tl.sqrt(v / correction2) + eps)
        if low_bits is None:
            seed = _mix(tl.load(salt).to(tl.uint32) * 1_000_003 + t.to(tl.uint32))
            bits = _mix(places.to(tl.uint32) + seed)
            w, m, v = _round(w, bits), _round(m, bits >> 16), _round(v, bits >> 8)
            tl.store(weight + places, w, mask)
        else:
            bits = w.to(tl.int32, bitcast=True)
            high = (bits + 0x8000) >> 16
            tl.store(weight + places, high.to(tl.int16).to(tl.bfloat16, bitcast=True), mask)
            tl.store(low_bits + places, (bits - (high << 16)).to(tl.int16), mask)
        tl.store(exp_avg + places, m, mask)
        tl.store(exp_avg_sq + places, v, mask)


@triton.jit
def _whole(weight, low_bits):
    high = weight.to(tl.int16, bitcast=True).to(tl.int32) << 16
    return (high + low_bits.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _round(x, bits):
    carried = x.to(tl.uint32, bitcast=True) + (bits & 0xFFFF)
    return (carried & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)
