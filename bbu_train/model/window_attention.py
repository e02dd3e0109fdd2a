"""Attention within the windows of the vision tower, the turn of its positions included.

Kernels for long sequences work on tiles of 64 to 128 tokens, write statistics of the softmax and reduce over tiles; of
a window of 64 patches they use half a tile or less. And what turns queries and keys by their positions reads and writes
them once more on either side. Here one program holds a window of one head as a whole, from the product that makes
queries, keys and values to the one that takes what was read, and keeps nothing for the backward pass but its inputs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bbu_train.model import window_kernel

LONGEST = 64  # tokens of a window
LEAST_TILE = 16  # channels that a product of Triton takes


def replace_windows(visual: nn.Module) -> None:
    """Give every windowed block of a vision tower the attention of this file, unless its windows are too large."""
    config = visual.config
    if (config.window_size // config.patch_size) ** 2 > LONGEST:
        return
    for number, block in enumerate(visual.blocks):
        if number not in config.fullatt_block_indexes:
            block.attn = WindowAttention(block.attn)


class WindowAttention(nn.Module):
    """In place of a windowed block's attention of transformers' Qwen2.5-VL; parameters and their names are the same.

    CUDA and half precision, for windows of at most LONGEST patches.
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
        **_,
    ) -> Float[Tensor, "patches width"]:
        read = window_attention(self.qkv(hidden_states), *position_embeddings, cu_seqlens, self.num_heads, self.scaling)
        return self.proj(read)


def window_attention(
    queries_keys_values: Float[Tensor, "tokens three_widths"],
    cos: Float[Tensor, "tokens size"],
    sin: Float[Tensor, "tokens size"],
    bounds: Int[Tensor, "windows_and_one"],
    num_heads: int,
    scaling: float,
) -> Float[Tensor, "tokens width"]:
    """softmax(scaling R(Q) R(K)^T) V within each window and head, with R(x) = x cos + (-x_2, x_1) sin (Su et al. 2021).

    x_1 and x_2 are the halves of a head's channels, for which `cos` and `sin` are the same. Positions are turned in
    float32, products are in the dtype of the input, and gradients are summed in a fixed order.
    """
    return _forward(queries_keys_values.contiguous(), cos.contiguous(), sin.contiguous(), bounds, num_heads, scaling)


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
def _(qkv, cos, sin, bounds, num_heads, scaling):
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


@_backward.register_fake
def _(gradient, qkv, cos, sin, bounds, num_heads, scaling):
    return torch.empty_like(qkv)


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.num_heads, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, gradient: Tensor):
    return _backward(gradient, *ctx.saved_tensors, ctx.num_heads, ctx.scaling), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _sizes(qkv: Tensor, num_heads: int) -> dict[str, int]:
    size = qkv.shape[1] // 3 // num_heads
    half = max(LEAST_TILE, 1 << (size // 2 - 1).bit_length())
    return {"HEADS": num_heads, "SIZE": size, "HALF": half, "TOKENS": LONGEST}
