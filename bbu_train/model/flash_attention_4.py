"""flash-attention 4 (the flash-attn-4 package) as custom operators that compiled code can call.

The package compiles its kernels for Hopper and Blackwell at run time, which takes some seconds at the first call of
each kind, and torch.compile cannot trace that. So this module wraps the package's forward and backward functions as
opaque operators. Both functions are private: the public one combines them in Python code that no graph can contain.
"""

from typing import Any

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
    """Return softmax(scaling Q K^T) V within segments. `heads / kv_heads` query heads share one key and value head."""
    return _forward(query, key, value, bounds, max_length, scaling, is_causal)[0]


@torch.library.custom_op("bbu_train::flash_attention_4", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int, scaling: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Return the result and the log-sum-exp of each softmax, which the backward pass needs."""
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
    logsumexp: Tensor,
    max_length: int,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    settings = {"softmax_scale": scaling, "causal": is_causal}
    tensors = query, key, value, out, gradient.contiguous(), logsumexp
    return interface._flash_attn_bwd(*tensors, **_segments(bounds, max_length), **settings)[:3]


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int, scaling: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    return _contiguous_like(query), query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)


@_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    max_length: int,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _contiguous_like(query), _contiguous_like(key), _contiguous_like(value)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.max_length, ctx.scaling, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    settings = ctx.max_length, ctx.scaling, ctx.is_causal
    return *_backward(gradient, *ctx.saved_tensors, *settings), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _segments(bounds: Tensor, max_length: int) -> dict[str, Any]:
    lengths = {"max_seqlen_q": max_length, "max_seqlen_k": max_length}
    return {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds} | lengths
