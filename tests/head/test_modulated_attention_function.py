"""The kernels for attention around a box, beside torch's own attention with what is added as a tensor."""

import pytest
import torch

from bbu_train.head.modulated_attention import IMAGE, NOTHING, TEXT, bias
from bbu_train.runtime.seeds import generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels run on CUDA only")
GPU = torch.device("cuda")
HALF = torch.bfloat16


def drawn(num_samples, num_heads, num_queries, num_keys, size):
    """Queries, keys, values, looks and entries. Boxes of all sizes, down to less than a patch in a corner; the last
    sample has a third of the others' memory, and a few entries of each are text."""
    random = generator("gaze", num_samples, num_heads, num_queries, num_keys, size)

    def normal(*shape):
        return torch.from_numpy(random.standard_normal(shape, dtype="float32"))

    q, k, v = (normal(num_samples, num_heads, many, size) for many in (num_queries, num_keys, num_keys))
    middles = torch.from_numpy(random.random((num_samples, num_queries, num_heads, 2), dtype="float32"))
    spreads = torch.from_numpy(10 ** random.uniform(-2, -0.5, middles.shape).astype("float32"))
    looks = torch.cat([middles, spreads, normal(*middles.shape[:3], 1) - 4], dim=-1)
    centers = torch.from_numpy(random.random((num_samples, num_keys, 2), dtype="float32"))
    kinds = torch.full((num_samples, num_keys), float(IMAGE))
    kinds[:, :3] = TEXT
    kinds[-1, 3 + num_keys // 3 :] = NOTHING
    entries = torch.cat([centers * (kinds == IMAGE)[..., None], kinds[..., None]], dim=-1)
    return [its.to(GPU) for its in (q, k, v, looks, entries)]


def by_torch(q, k, v, looks, entries):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias(looks, entries).to(q.dtype))


def by_kernel(*inputs):
    from bbu_train.head.modulated_attention_function import gaze_attention

    return gaze_attention(*inputs)


def run(attention, inputs, dtype):
    """What is read, and the gradients of queries, keys, values and looks."""
    *states, looks, entries = (its.detach() for its in inputs)
    learned = [its.to(dtype).requires_grad_() for its in states] + [looks.clone().requires_grad_()]
    out = attention(*learned, entries)
    weights = torch.sin(torch.arange(out.numel(), device=GPU)).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), learned)]


def gap(one, other):
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


SHAPES = [(2, 8, 100, 300, 32), (2, 3, 65, 64, 16), (1, 1, 1, 40, 24), (3, 2, 130, 257, 64)]


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_torchs_attention_but_for_rounding(shape):
    """No farther from float32 than torch is with its mask in half precision, and what looks learn much nearer."""
    inputs = drawn(*shape)
    exact, usual = run(by_torch, inputs, torch.float32), run(by_torch, inputs, HALF)
    found = run(by_kernel, inputs, HALF)
    for ours, theirs, true in zip(found, usual, exact, strict=True):
        assert gap(ours, true) < 1.25 * gap(theirs, true) + 2e-3
    assert gap(found[-1], exact[-1]) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_kernels_equal_torchs_attention(shape):
    """`look` does not take them then; but so a wrong term of a gradient would be seen."""
    inputs = drawn(*shape)
    exact, found = (run(attention, inputs, torch.float32) for attention in (by_torch, by_kernel))
    for ours, true in zip(found, exact, strict=True):
        assert gap(ours, true) < 5e-3  # products of 10 bits


def test_what_is_nothing_gives_and_learns_nothing():
    q, k, v, looks, entries = drawn(2, 2, 20, 90, 32)
    nothing = (entries[..., 2] == NOTHING)[:, None, :, None]
    changed = [torch.where(nothing, 100 * its, its) for its in (k, v)]
    before, after = (run(by_kernel, its, HALF) for its in ((q, k, v, looks, entries), (q, *changed, looks, entries)))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    assert not before[2].masked_select(nothing).any()
    assert not before[3].masked_select(nothing).any()


def test_gradients_are_the_same_each_time():
    inputs = drawn(2, 8, 200, 300, 32)
    for one, other in zip(run(by_kernel, inputs, HALF), run(by_kernel, inputs, HALF), strict=True):
        assert torch.equal(one, other)
