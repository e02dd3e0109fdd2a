"""Attention within the windows of the vision tower, with rotary embeddings applied in the same kernel.

Attention kernels for long sequences work on tiles of up to 128 tokens, write softmax statistics and reduce over tiles.
A window of 64 patches may fill only half a tile, and separate rotary embeddings read and write queries and keys once
more, forward and backward. Here one Triton program holds one head of one window and computes everything between the QKV
projection and the output projection. It stores only its inputs for the backward pass.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bbu_train.model import window_kernel

MAX_WINDOW_TOKENS = 64
MIN_DOT_CHANNELS = 16  # the smallest inner dimension of tl.dot


def replace_windows(visual: nn.Module) -> None:
    """Replace the attention of every windowed block by `WindowAttention`, unless windows are too large for it."""
    config = visual.config
    if (config.window_size // config.patch_size) ** 2 > MAX_WINDOW_TOKENS:
        return
    for i, block in enumerate(visual.blocks):
        if i not in config.fullatt_block_indexes:
            block.attn = WindowAttention(block.attn)


class WindowAttention(nn.Module):
    """Replaces Qwen2_5_VLVisionAttention in windowed blocks; parameters and their names stay the same.

    It needs CUDA and half precision, and windows of at most MAX_WINDOW_TOKENS patches.
    """

    def __init__(self, stock: nn.Module):
        super().__init__()
        self.qkv, self.proj = stock.qkv, stock.proj
        self.num_heads, self.scaling = stock.num_heads, stock.scaling

    def forward(
        self,
        hidden_states: Float[Tensor, "patches width"],
        cu_seqlens: Int[Tensor, "windows_and_one"],
        position_embeddings: tuple[Float[Tensor, "patches size"], Float[Tensor, "patches size"]],
        **_: object,
    ) -> Float[Tensor, "patches width"]:
        qkv = self.qkv(hidden_states)
        return self.proj(window_attention(qkv, *position_embeddings, cu_seqlens, self.num_heads, self.scaling))


def window_attention(
    qkv: Float[Tensor, "tokens three_widths"],
    cos: Float[Tensor, "tokens size"],
    sin: Float[Tensor, "tokens size"],
    bounds: Int[Tensor, "windows_and_one"],
    num_heads: int,
    scaling: float,
) -> Float[Tensor, "tokens width"]:
    """Return softmax(scaling R(Q) R(K)^T) V within each window and head, with rotary embeddings R (Su et al. 2021).

    R(x) = x cos + (-x2, x1) sin, where x1 and x2 are the halves of a head's channels. `cos` and `sin` have the same
    values for both halves. Rotations are computed in float32 and products in the dtype of the input. Gradients are
    summed in a fixed order.
    """
    return _forward(qkv.contiguous(), cos.contiguous(), sin.contiguous(), bounds, num_heads, scaling)


@torch.library.custom_op("bbu_train::window_attention", mutates_args=())
def _forward(qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, num_heads: int, scaling: float) -> Tensor:
    out = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
    window_kernel.forward[num_heads, len(bounds) - 1](qkv, cos, sin, out, bounds, scaling, **_sizes(qkv, num_heads))
    return out


@torch.library.custom_op("bbu_train::window_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, num_heads: int, scaling: float
) -> Tensor:
    out = torch.empty_like(qkv)
    tensors = qkv, cos, sin, gradient.contiguous(), out, bounds
    window_kernel.backward[num_heads, len(bounds) - 1](*tensors, scaling, **_sizes(qkv, num_heads))
    return out


@_forward.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, num_heads: int, scaling: float) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


@_backward.register_fake
def _(
    gradient: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, num_heads: int, scaling: float
) -> Tensor:
    return torch.empty_like(qkv)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _backward(gradient, *ctx.saved_tensors, ctx.num_heads, ctx.scaling), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)


def _sizes(qkv: Tensor, num_heads: int) -> dict[str, int]:
    """Return the kernel's constants. HALF is half a head's channels, rounded up to a power of 2."""
    size = qkv.shape[1] // 3 // num_heads
    half = max(MIN_DOT_CHANNELS, 1 << (size // 2 - 1).bit_length())
    return {"HEADS": num_heads, "SIZE": size, "HALF": half, "TOKENS": MAX_WINDOW_TOKENS}
