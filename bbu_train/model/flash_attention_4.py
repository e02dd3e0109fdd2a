"""flash-attention 4 (the flash-attn-4 package) as operators that compiled code can call.

The package compiles its kernels for Hopper and Blackwell while the program runs, some seconds at the first call of each
kind, and torch.compile cannot look into that. So its forward and backward functions are wrapped here; they are private
in the package, whose public function holds both in one piece of Python that no graph can contain.
"""

import torch
from flash_attn.cute import interface
from jaxtyping import Float, Int
from torch import Tensor


def flash_attention_4(
    query: Float[Tensor, "flat heads size"],
    key: Float[Tensor, "flat kv_heads size"],
    value: Float[Tensor, "flat kv_heads size"],
    bounds: Int[Tensor, "segments_and_one"],
    max_length: int,
    scaling: float,
    is_causal: bool,
) -> Float[Tensor, "flat heads size"]:
    """softmax(scaling Q K^T) V within segments; each of `kv_heads` serves as many heads as there are to it."""
    return _forward(query, key, value, bounds, max_length, scaling, is_causal)[0]


@torch.library.custom_op("bbu_train::flash_attention_4", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int, scaling: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """The result, and the logarithm of each softmax's denominator, which the backward pass reads."""
    settings = {"softmax_scale": scaling, "causal": is_causal, "return_lse": True}
    return interface._flash_attn_fwd(query, key, value, **_segments(bounds, max_length), **settings)[:2]


@torch.library.custom_op("bbu_train::flash_attention_4_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    out: Tensor,
    denominators: Tensor,
    max_length: int,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    settings = {"softmax_scale": scaling, "causal": is_causal}
    tensors = query, key, value, out, gradient.contiguous(), denominators
    return interface._flash_attn_bwd(*tensors, **_segments(bounds, max_length), **settings)[:3]


@_forward.register_fake
def _(query, key, value, bounds, max_length, scaling, is_causal):
    return _like(query), query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)


@_backward.register_fake
def _(gradient, query, key, value, bounds, out, denominators, max_length, scaling, is_causal):
    return _like(query), _like(key), _like(value)


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.max_length, ctx.scaling, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx, gradient: Tensor, _):
    settings = ctx.max_length, ctx.scaling, ctx.is_causal
    return *_backward(gradient, *ctx.saved_tensors, *settings), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _segments(bounds: Tensor, max_length: int) -> dict:
    lengths = {"max_seqlen_q": max_length, "max_seqlen_k": max_length}
    return {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds} | lengths
