"""The kernels of window_attention.py: one program for each head of each window."""

import triton
import triton.language as tl


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
def forward(
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
def backward(
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
