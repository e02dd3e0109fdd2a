"""Attention within segments of at most 64 tokens: the windows of the vision tower.

Kernels for long sequences work on tiles of 64 to 128 tokens, write statistics of the softmax and reduce over tiles; of
a window of 64 tokens they use half a tile or less. Here one program holds a window of one head as a whole, reads it
once and keeps nothing for the backward pass but its inputs.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from bbu_train.model.attention import LONGEST_WINDOW


def window_attention(
    query: Float[Tensor, "flat heads size"],
    key: Float[Tensor, "flat heads size"],
    value: Float[Tensor, "flat heads size"],
    bounds: Int[Tensor, "segments_and_one"],
    scaling: float,
) -> Float[Tensor, "flat heads size"]:
    """softmax(scaling Q K^T) V within each segment, whose length is at most LONGEST_WINDOW; CUDA only.

    Products are in the inputs' dtype. Gradients are those of the same formula, summed in a fixed order.
    """
    return _forward(query, key, value, bounds, scaling)


@torch.library.custom_op("bbu_train::window_attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    inputs = (query, key, value)
    _forward_kernel[_grid(query, bounds)](*inputs, out, bounds, *_strides(*inputs, out), scaling, **_sizes(query))
    return out


@torch.library.custom_op("bbu_train::window_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (query, key, value, gradient)
    outs = tuple(torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3))
    strides = _strides(*inputs, outs[0])  # the three are laid out alike
    _backward_kernel[_grid(query, bounds)](*inputs, *outs, bounds, *strides, scaling, **_sizes(query))
    return outs


@_forward.register_fake
def _(query, key, value, bounds, scaling):
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(gradient, query, key, value, bounds, scaling):
    return tuple(torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3))


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, gradient: Tensor):
    return *_backward(gradient, *ctx.saved_tensors, ctx.scaling), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _grid(query: Tensor, bounds: Tensor) -> tuple[int, int]:
    """A program for each head of each segment."""
    return query.shape[1], len(bounds) - 1


def _sizes(query: Tensor) -> dict[str, int]:
    return {"SIZE": query.shape[2], "TOKENS": LONGEST_WINDOW, "CHANNELS": triton.next_power_of_2(query.shape[2])}


def _strides(*tensors: Tensor) -> list[int]:
    """Of tokens and of heads; the channels of a head lie side by side."""
    assert all(tensor.stride(2) == 1 for tensor in tensors), "the channels of a head are apart"
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


@triton.jit
def _place(bounds, SIZE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of this program: the head, its tokens and channels, what of them is there, and which tokens may be read."""
    head, first, end = tl.program_id(0), tl.load(bounds + tl.program_id(1)), tl.load(bounds + tl.program_id(1) + 1)
    tokens, channels = first + tl.arange(0, TOKENS), tl.arange(0, CHANNELS)
    mask = (tokens < end)[:, None] & (channels < SIZE)[None, :]
    return head, tokens[:, None].to(tl.int64), channels[None, :], mask, (tokens < end)[None, :]


@triton.jit
def _softmax(query, key, scaling, readable):
    scores = tl.where(readable, tl.dot(query, tl.trans(key)) * scaling, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.autotune([triton.Config({}, num_warps=number) for number in (2, 4, 8)], key=["SIZE"])
@triton.jit
def _forward_kernel(
    q, k, v, out, bounds,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    scaling, SIZE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    head, tokens, channels, mask, readable = _place(bounds, SIZE, TOKENS, CHANNELS)
    query = tl.load(q + tokens * q_token + head * q_head + channels, mask, 0.0)
    key = tl.load(k + tokens * k_token + head * k_head + channels, mask, 0.0)
    value = tl.load(v + tokens * v_token + head * v_head + channels, mask, 0.0)
    weights = _softmax(query, key, scaling, readable)
    read = tl.dot(weights.to(value.dtype), value)
    tl.store(out + tokens * out_token + head * out_head + channels, read.to(value.dtype), mask)


@triton.autotune([triton.Config({}, num_warps=number) for number in (2, 4, 8)], key=["SIZE"])
@triton.jit
def _backward_kernel(
    q, k, v, gradient, dq, dk, dv, bounds,
    q_token, q_head, k_token, k_head, v_token, v_head, g_token, g_head, out_token, out_head,
    scaling, SIZE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    head, tokens, channels, mask, readable = _place(bounds, SIZE, TOKENS, CHANNELS)
    query = tl.load(q + tokens * q_token + head * q_head + channels, mask, 0.0)
    key = tl.load(k + tokens * k_token + head * k_head + channels, mask, 0.0)
    value = tl.load(v + tokens * v_token + head * v_head + channels, mask, 0.0)
    said = tl.load(gradient + tokens * g_token + head * g_head + channels, mask, 0.0)
    to = tokens * out_token + head * out_head + channels
    # O = P V and P = softmax(S), so dV = P^T dO, dP = dO V^T and dS = P (dP - sum(P dP)).
    weights = _softmax(query, key, scaling, readable)
    tl.store(dv + to, tl.dot(tl.trans(weights.to(value.dtype)), said).to(value.dtype), mask)
    d_weights = tl.dot(said, tl.trans(value))
    d_scores = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None]) * scaling
    d_scores = d_scores.to(value.dtype)
    tl.store(dq + to, tl.dot(d_scores, key).to(value.dtype), mask)
    tl.store(dk + to, tl.dot(tl.trans(d_scores), query).to(value.dtype), mask)
