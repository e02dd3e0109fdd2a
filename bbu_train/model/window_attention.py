"""Attention within the windows of the vision tower, the turn of its positions included.

Kernels for long sequences work on tiles of 64 to 128 tokens, write statistics of the softmax and reduce over tiles; of
a window of 64 patches they use half a tile or less. And what turns queries and keys by their positions reads and writes
them once more on either side. Here one program holds a window of one head as a whole, from the product that makes
queries, keys and values to the one that takes what was read, and keeps nothing for the backward pass but its inputs.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor, nn

LONGEST = 64  # tokens of a window


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
    _forward_kernel[num_heads, len(bounds) - 1](qkv, cos, sin, out, bounds, scaling, **_sizes(qkv, num_heads))
    return out


@torch.library.custom_op("bbu_train::window_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, num_heads: int, scaling: float
) -> Tensor:
    out = torch.empty_like(qkv)
    tensors = qkv, cos, sin, gradient.contiguous(), out, bounds
    _backward_kernel[num_heads, len(bounds) - 1](*tensors, scaling, **_sizes(qkv, num_heads))
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
    return {"HEADS": num_heads, "SIZE": size, "HALF": triton.next_power_of_2(size // 2), "TOKENS": LONGEST}


def _choices() -> list:
    return [triton.Config({}, num_warps=number) for number in (2, 4, 8)]


@triton.jit
def _place(bounds, SIZE: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr):
    """The head and the tokens of this program, half a head's channels, and which of the tokens and of both are real."""
    first, end = tl.load(bounds + tl.program_id(1)), tl.load(bounds + tl.program_id(1) + 1)
    tokens, half = first + tl.arange(0, TOKENS), tl.arange(0, HALF)[None, :]
    is_token = tokens < end
    mask = is_token[:, None] & (half < SIZE // 2)
    return tl.program_id(0), tokens[:, None].to(tl.int64), half, mask, is_token[None, :]


@triton.jit
def _halves(first, half, mask, SIZE: tl.constexpr):
    return tl.load(first + half, mask, 0.0), tl.load(first + SIZE // 2 + half, mask, 0.0)


@triton.jit
def _store(first, half, mask, one, two, SIZE: tl.constexpr):
    tl.store(first + half, one.to(first.dtype.element_ty), mask)
    tl.store(first + SIZE // 2 + half, two.to(first.dtype.element_ty), mask)


@triton.jit
def _turned(first, half, mask, cos, sin, SIZE: tl.constexpr):
    one, two = _halves(first, half, mask, SIZE)
    turned_one = one.to(tl.float32) * cos - two.to(tl.float32) * sin
    turned_two = two.to(tl.float32) * cos + one.to(tl.float32) * sin
    return turned_one.to(one.dtype), turned_two.to(one.dtype)


@triton.jit
def _softmax(q_one, q_two, k_one, k_two, scaling, readable):
    scores = tl.dot(q_one, tl.trans(k_one)) + tl.dot(q_two, tl.trans(k_two))
    scores = tl.where(readable, scores * scaling, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.autotune(_choices(), key=["SIZE"])
@triton.jit
def _forward_kernel(
    qkv, cos, sin, out, bounds, scaling,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    head, tokens, half, mask, readable = _place(bounds, SIZE, HALF, TOKENS)
    c, s = tl.load(cos + tokens * SIZE + half, mask, 0.0), tl.load(sin + tokens * SIZE + half, mask, 0.0)
    first = qkv + tokens * (3 * HEADS * SIZE) + head * SIZE
    q_one, q_two = _turned(first, half, mask, c, s, SIZE)
    k_one, k_two = _turned(first + HEADS * SIZE, half, mask, c, s, SIZE)
    v_one, v_two = _halves(first + 2 * HEADS * SIZE, half, mask, SIZE)
    weights = _softmax(q_one, q_two, k_one, k_two, scaling, readable).to(v_one.dtype)
    to = out + tokens * (HEADS * SIZE) + head * SIZE
    _store(to, half, mask, tl.dot(weights, v_one), tl.dot(weights, v_two), SIZE)


@triton.autotune(_choices(), key=["SIZE"])
@triton.jit
def _backward_kernel(
    qkv, cos, sin, gradient, out, bounds, scaling,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    head, tokens, half, mask, readable = _place(bounds, SIZE, HALF, TOKENS)
    c, s = tl.load(cos + tokens * SIZE + half, mask, 0.0), tl.load(sin + tokens * SIZE + half, mask, 0.0)
    first = qkv + tokens * (3 * HEADS * SIZE) + head * SIZE
    q_one, q_two = _turned(first, half, mask, c, s, SIZE)
    k_one, k_two = _turned(first + HEADS * SIZE, half, mask, c, s, SIZE)
    v_one, v_two = _halves(first + 2 * HEADS * SIZE, half, mask, SIZE)
    o_one, o_two = _halves(gradient + tokens * (HEADS * SIZE) + head * SIZE, half, mask, SIZE)
    to = out + tokens * (3 * HEADS * SIZE) + head * SIZE

    # O = P V and P = softmax(S), so dV = P^T dO, dP = dO V^T and dS = P (dP - sum(P dP)).
    weights = _softmax(q_one, q_two, k_one, k_two, scaling, readable)
    read = tl.trans(weights.to(v_one.dtype))
    _store(to + 2 * HEADS * SIZE, half, mask, tl.dot(read, o_one), tl.dot(read, o_two), SIZE)
    d_weights = tl.dot(o_one, tl.trans(v_one)) + tl.dot(o_two, tl.trans(v_two))
    d_scores = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None]) * scaling
    d_scores = d_scores.to(v_one.dtype)

    # R turns by an angle, so its transpose turns back.
    one, two = tl.dot(d_scores, k_one), tl.dot(d_scores, k_two)
    _store(to, half, mask, one * c + two * s, two * c - one * s, SIZE)
    d_scores = tl.trans(d_scores)
    one, two = tl.dot(d_scores, q_one), tl.dot(d_scores, q_two)
    _store(to + HEADS * SIZE, half, mask, one * c + two * s, two * c - one * s, SIZE)
