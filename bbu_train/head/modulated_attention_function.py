"""Attention to which a look around a box is added, without a number for each pair of query and key in memory.

What is added is made from five numbers of a query and three of a key where it is needed, in float32, and what the five
learn is summed in float32, too. As further channels of queries and keys it would be a plain product, but of terms in
the thousands that cancel: half precision would lose what is learned.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from bbu_train.head import modulated_attention_kernel

TILE = 64  # of queries and of keys


def gaze_attention(
    queries: Float[Tensor, "samples heads queries size"],
    keys: Float[Tensor, "samples heads keys size"],
    values: Float[Tensor, "samples heads keys size"],
    looks: Float[Tensor, "samples queries heads 5"],
    entries: Float[Tensor, "samples keys 3"],
) -> Float[Tensor, "samples heads queries size"]:
    """As `gaze.look`, on a GPU. Gradients are summed in a fixed order; `entries` get none."""
    read = _Attention.apply(*(its.transpose(1, 2) for its in (queries, keys, values)), looks, entries)
    return read.transpose(1, 2)


class _Attention(torch.autograd.Function):
    """Of tensors (samples, queries or keys, heads, size)."""

    @staticmethod
    def forward(ctx, *inputs: Tensor) -> Tensor:
        inputs = q, k, *_ = [its.contiguous() for its in inputs]
        read = torch.empty_like(q)
        log_sums = q.new_empty(len(q), q.shape[2], q.shape[1], dtype=torch.float32)
        modulated_attention_kernel.forward[_grid(q, q)](*inputs, read, log_sums, *_sizes(q, k), **_constants(q))
        ctx.save_for_backward(*inputs, read, log_sums)
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, read, log_sums = ctx.saved_tensors
        q, k, v, looks, _ = inputs
        gradient, common = gradient.contiguous(), torch.empty_like(log_sums)
        d_q, d_k, d_v, d_looks = (torch.empty_like(its) for its in (q, k, v, looks))
        sizes, constants = _sizes(q, k), _constants(q)
        modulated_attention_kernel.backward_of_queries[_grid(q, q)](
            *inputs, read, log_sums, gradient, d_q, d_looks, common, *sizes, **constants
        )
        modulated_attention_kernel.backward_of_keys[_grid(q, k)](
            *inputs, log_sums, gradient, common, d_k, d_v, *sizes, **constants
        )
        return d_q, d_k, d_v, d_looks, None


def _grid(q: Tensor, tiled: Tensor) -> tuple[int, int]:
    return -(-tiled.shape[1] // TILE), len(q) * q.shape[2]


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, float]:
    return q.shape[1], k.shape[1], q.shape[3] ** -0.5


def _constants(q: Tensor) -> dict[str, int]:
    size = q.shape[3]
    return {
        "HEADS": q.shape[2],
        "SIZE": size,
        "WIDTH": max(16, 1 << (size - 1).bit_length()),
        "QUERIES": TILE,
        "KEYS": TILE,
    }
