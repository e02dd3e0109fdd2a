"""Spatially modulated cross-attention on a GPU, without storing a bias for each pair of query and memory entry.

The kernels compute the bias where they need it, in float32, from five numbers for each query and head and three for
each entry, and sum the gradients of the five in float32 too. Extra channels of queries and keys could give the bias as
a plain product, but its terms are in the thousands and cancel: half precision would lose the gradients.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from bbu_train.head import modulated_attention_kernel

TILE = 64  # queries and keys that a program handles at once


def fused_modulated_attention(
    queries: Float[Tensor, "samples heads queries size"],
    keys: Float[Tensor, "samples heads keys size"],
    values: Float[Tensor, "samples heads keys size"],
    gaussians: Float[Tensor, "samples queries heads 5"],
    entries: Float[Tensor, "samples keys 3"],
) -> Float[Tensor, "samples heads queries size"]:
    """Return what `modulated_attention` does, on a GPU.

    Gradients are summed in a fixed order, so they are reproducible; `entries` get none.
    """
    transposed = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
    return _ModulatedAttention.apply(*transposed, gaussians, entries).transpose(1, 2)


class _ModulatedAttention(torch.autograd.Function):
    """The autograd function for tensors of shape (samples, queries or keys, heads, size)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        inputs = q, k, *_ = [tensor.contiguous() for tensor in inputs]
        out = torch.empty_like(q)
        log_sum_exp = q.new_empty(len(q), q.shape[2], q.shape[1], dtype=torch.float32)
        modulated_attention_kernel.forward[_grid(q, q)](*inputs, out, log_sum_exp, *_sizes(q, k), **_constants(q))
        ctx.save_for_backward(*inputs, out, log_sum_exp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, log_sum_exp = ctx.saved_tensors
        q, k, v, gaussians, _ = inputs
        d_out, delta = d_out.contiguous(), torch.empty_like(log_sum_exp)
        d_q, d_k, d_v, d_gaussians = (torch.empty_like(tensor) for tensor in (q, k, v, gaussians))
        sizes, constants = _sizes(q, k), _constants(q)
        modulated_attention_kernel.backward_of_queries[_grid(q, q)](
            *inputs, out, log_sum_exp, d_out, d_q, d_gaussians, delta, *sizes, **constants
        )
        modulated_attention_kernel.backward_of_keys[_grid(q, k)](
            *inputs, log_sum_exp, d_out, delta, d_k, d_v, *sizes, **constants
        )
        return d_q, d_k, d_v, d_gaussians, None


def _grid(q: Tensor, tiled: Tensor) -> tuple[int, int]:
    return -(-tiled.shape[1] // TILE), len(q) * q.shape[2]


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, float]:
    """Return the kernels' num_queries, num_keys and scale."""
    return q.shape[1], k.shape[1], q.shape[3] ** -0.5


def _constants(q: Tensor) -> dict[str, int]:
    size = q.shape[3]
    return {
        "HEADS": q.shape[2],
        "SIZE": size,
        "PADDED_SIZE": max(16, 1 << (size - 1).bit_length()),
        "QUERIES": TILE,
        "KEYS": TILE,
    }
