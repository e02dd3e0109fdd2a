"""The Triton kernels of window_attention.py. One program computes one head of one window.

Names follow the docstring there: x1 and x2 are the halves of a head's channels, and dX is the gradient of X.
"""

import triton
import triton.language as tl


def _configs() -> list[triton.Config]:
    return [triton.Config({}, num_warps=num_warps) for num_warps in (2, 4, 8)]


@triton.jit
def _locate(bounds, SIZE: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr):
    """Return the head and the tokens of this program, the channels of half a head, the mask of existing tokens and
    channels, and the mask of existing keys."""
    first, end = tl.load(bounds + tl.program_id(1)), tl.load(bounds + tl.program_id(1) + 1)
    tokens, half = first + tl.arange(0, TOKENS), tl.arange(0, HALF)[None, :]
    is_token = tokens < end
    mask = is_token[:, None] & (half < SIZE // 2)
    return tl.program_id(0), tokens[:, None].to(tl.int64), half, mask, is_token[None, :]


@triton.jit
def _load_halves(start, half, mask, SIZE: tl.constexpr):
    return tl.load(start + half, mask, 0.0), tl.load(start + SIZE // 2 + half, mask, 0.0)


@triton.jit
def _store_halves(start, half, mask, x1, x2, SIZE: tl.constexpr):
    tl.store(start + half, x1.to(start.dtype.element_ty), mask)
    tl.store(start + SIZE // 2 + half, x2.to(start.dtype.element_ty), mask)


@triton.jit
def _load_rotated(start, half, mask, cos, sin, SIZE: tl.constexpr):
    x1, x2 = _load_halves(start, half, mask, SIZE)
    rotated1 = x1.to(tl.float32) * cos - x2.to(tl.float32) * sin
    rotated2 = x2.to(tl.float32) * cos + x1.to(tl.float32) * sin
    return rotated1.to(x1.dtype), rotated2.to(x1.dtype)


@triton.jit
def _softmax(q1, q2, k1, k2, scaling, is_key):
    scores = tl.dot(q1, tl.trans(k1)) + tl.dot(q2, tl.trans(k2))
    scores = tl.where(is_key, scores * scaling, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.autotune(_configs(), key=["SIZE"])
@triton.jit
def forward(
    qkv, cos, sin, out, bounds, scaling,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    head, tokens, half, mask, is_key = _locate(bounds, SIZE, HALF, TOKENS)
    c, s = tl.load(cos + tokens * SIZE + half, mask, 0.0), tl.load(sin + tokens * SIZE + half, mask, 0.0)
    q_start = qkv + tokens * (3 * HEADS * SIZE) + head * SIZE
    q1, q2 = _load_rotated(q_start, half, mask, c, s, SIZE)
    k1, k2 = _load_rotated(q_start + HEADS * SIZE, half, mask, c, s, SIZE)
    v1, v2 = _load_halves(q_start + 2 * HEADS * SIZE, half, mask, SIZE)
    weights = _softmax(q1, q2, k1, k2, scaling, is_key).to(v1.dtype)
    out_start = out + tokens * (HEADS * SIZE) + head * SIZE
    _store_halves(out_start, half, mask, tl.dot(weights, v1), tl.dot(weights, v2), SIZE)


@triton.autotune(_configs(), key=["SIZE"])
@triton.jit
def backward(
    qkv, cos, sin, gradient, out, bounds, scaling,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    head, tokens, half, mask, is_key = _locate(bounds, SIZE, HALF, TOKENS)
    c, s = tl.load(cos + tokens * SIZE + half, mask, 0.0), tl.load(sin + tokens * SIZE + half, mask, 0.0)
    q_start = qkv + tokens * (3 * HEADS * SIZE) + head * SIZE
    q1, q2 = _load_rotated(q_start, half, mask, c, s, SIZE)
    k1, k2 = _load_rotated(q_start + HEADS * SIZE, half, mask, c, s, SIZE)
    v1, v2 = _load_halves(q_start + 2 * HEADS * SIZE, half, mask, SIZE)
    do1, do2 = _load_halves(gradient + tokens * (HEADS * SIZE) + head * SIZE, half, mask, SIZE)
    dq_start = out + tokens * (3 * HEADS * SIZE) + head * SIZE

    # O = P V and P = softmax(S), so dV = P^T dO, dP = dO V^T and dS = P (dP - sum(P dP)).
    p = _softmax(q1, q2, k1, k2, scaling, is_key)
    p_transposed = tl.trans(p.to(v1.dtype))
    _store_halves(dq_start + 2 * HEADS * SIZE, half, mask, tl.dot(p_transposed, do1), tl.dot(p_transposed, do2), SIZE)
    dp = tl.dot(do1, tl.trans(v1)) + tl.dot(do2, tl.trans(v2))
    ds = p * (dp - tl.sum(p * dp, 1)[:, None]) * scaling
    ds = ds.to(v1.dtype)

    # R is a rotation, so its transpose rotates back.
    x1, x2 = tl.dot(ds, k1), tl.dot(ds, k2)
    _store_halves(dq_start, half, mask, x1 * c + x2 * s, x2 * c - x1 * s, SIZE)
    ds = tl.trans(ds)
    x1, x2 = tl.dot(ds, q1), tl.dot(ds, q2)
    _store_halves(dq_start + HEADS * SIZE, half, mask, x1 * c + x2 * s, x2 * c - x1 * s, SIZE)
