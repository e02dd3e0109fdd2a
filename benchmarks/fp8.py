"""Would products in float8 be worth a choice? Every matrix product of a step, in bfloat16 and in float8 with its casts.

    python benchmarks/fp8.py [tokens=11840] [patches=25024] [supervised=4736] [step_seconds=0.65]

The products are those of Qwen2.5-VL-3B on the standard workload: `tokens` of the language model, `patches` of the
vision tower and `supervised` tokens whose logits are computed, all multiples of 16, as float8 products demand. A layer
has three products: y = x W^T, dx = dy W and dW = dy^T x. In float8 (e4m3 for x and W, e5m2 for dy, a scale for each
tensor from its own maximum) each operand is cast twice, because both operands of a product must be contiguous along the
dimension that is summed over: x and W and dy, and their transposes. W is cast once a step.

Prints milliseconds for each kind of layer, and the step that results if every product that gains at least 1.2 times is
converted. Needs a GPU of compute capability 8.9 or later. Times are medians of products alone, in bursts: at the power
limit of a whole step all of them are slower.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton.testing
from omegaconf import OmegaConf
from torch import Tensor

DEFAULTS = {"tokens": 11840, "patches": 25024, "supervised": 4736, "step_seconds": 0.65}
MIN_GAIN = 1.2
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@dataclass(frozen=True)
class Kind:
    """Layers of one shape: `count` of them in the model, each for `rows` inputs of `width` and outputs of `out`."""

    name: str
    count: int
    rows: int
    width: int
    out: int


def kinds(tokens: int, patches: int, supervised: int) -> list[Kind]:
    return [
        Kind("language q, k, v", 36, tokens, 2048, 2560),
        Kind("language output", 36, tokens, 2048, 2048),
        Kind("language gate, up", 72, tokens, 2048, 11008),
        Kind("language down", 36, tokens, 11008, 2048),
        Kind("vision q, k, v", 32, patches, 1280, 3840),
        Kind("vision output", 32, patches, 1280, 1280),
        Kind("vision gate, up", 64, patches, 1280, 3456),
        Kind("vision down", 32, patches, 3456, 1280),
        Kind("logits", 1, supervised, 2048, 151936),
    ]


def milliseconds(function: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(function, warmup=10, rep=40, return_mode="median"))


@torch.compile(dynamic=False)
def cast_both(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return x in float8, its transpose in float8, both contiguous, and the scale that undoes the cast."""
    scale = x.abs().amax().float().clamp(min=1e-12) / torch.finfo(dtype).max
    scaled = (x.float() / scale).to(dtype)
    return scaled, scaled.t().contiguous(), scale


def product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    """Return a b^T for float8 matrices that are contiguous along the dimension that is summed over."""
    return torch._scaled_mm(a, b.t(), scale_a, scale_b, out_dtype=torch.bfloat16, use_fast_accum=True)


def measure(kind: Kind) -> dict[str, float]:
    x, w, dy = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        for shape in ((kind.rows, kind.width), (kind.out, kind.width), (kind.rows, kind.out))
    )
    (x8, x8t, sx), (w8, w8t, sw), (dy8, dy8t, sdy) = cast_both(x, E4M3), cast_both(w, E4M3), cast_both(dy, E5M2)
    error = (product(x8, w8, sx, sw).float() - x.float() @ w.float().t()).norm() / (x.float() @ w.float().t()).norm()
    assert error < 0.1, f"the float8 product is wrong by {error:.0%}"
    return {
        "bf16 y": milliseconds(lambda: x @ w.t()),
        "bf16 dx": milliseconds(lambda: dy @ w),
        "bf16 dW": milliseconds(lambda: dy.t() @ x),
        "fp8 y": milliseconds(lambda: product(x8, w8, sx, sw)),
        "fp8 dx": milliseconds(lambda: product(dy8, w8t, sdy, sw)),
        "fp8 dW": milliseconds(lambda: product(dy8t, x8t, sdy, sx)),
        "casts": milliseconds(lambda: (cast_both(x, E4M3), cast_both(w, E4M3), cast_both(dy, E5M2))),
    }


def main() -> None:
    options = OmegaConf.merge(DEFAULTS, OmegaConf.from_cli(sys.argv[1:]))
    torch._dynamo.config.recompile_limit = 100  # casts are compiled for every shape
    names = ("bf16 y", "bf16 dx", "bf16 dW", "fp8 y", "fp8 dx", "fp8 dW", "casts")
    print(f"| layer | layers | {' | '.join(names)} | gain |\n|{'---|' * (len(names) + 3)}")
    before = after = 0.0
    for kind in kinds(options.tokens, options.patches, options.supervised):
        times = measure(kind)
        in_bf16 = sum(times[name] for name in names[:3])
        in_fp8 = sum(times[name] for name in names[3:])
        cells = " | ".join(f"{times[name]:.3f}" for name in names)
        print(f"| {kind.name} | {kind.count} | {cells} | {in_bf16 / in_fp8:.2f} |", flush=True)
        before += kind.count * in_bf16
        after += kind.count * (in_fp8 if in_bf16 / in_fp8 >= MIN_GAIN else in_bf16)
    seconds = options.step_seconds
    print(f"\nall products of a step: {before:.0f} ms in bfloat16, {after:.0f} ms if those that gain are in float8")
    print(f"a step of {seconds:g} s would be {seconds / (seconds - (before - after) / 1000):.3f} times as fast")


if __name__ == "__main__":
    main()
