"""The kernels of modulated attention, against torch's attention with the bias as a tensor."""

import pytest
import torch

from bbu_train.head.modulated_attention import IMAGE, PADDING, TEXT, modulation_bias
from bbu_train.runtime.seeds import generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels run on CUDA only")
GPU = torch.device("cuda")
HALF = torch.bfloat16


def random_inputs(num_samples, num_heads, num_queries, num_keys, size):
    """Queries, keys, values, Gaussians and memory entries.

    Standard deviations go down to less than a patch. A few entries of each sample are text, and two thirds of the last
    sample's image tokens are padding.
    """
    random = generator("gaze", num_samples, num_heads, num_queries, num_keys, size)

    def normal(*shape):
        return torch.from_numpy(random.standard_normal(shape, dtype="float32"))

    q, k, v = (normal(num_samples, num_heads, length, size) for length in (num_queries, num_keys, num_keys))
    means = torch.from_numpy(random.random((num_samples, num_queries, num_heads, 2), dtype="float32"))
    stds = torch.from_numpy(10 ** random.uniform(-2, -0.5, means.shape).astype("float32"))
    gaussians = torch.cat([means, stds, normal(*means.shape[:3], 1) - 4], dim=-1)
    centers = torch.from_numpy(random.random((num_samples, num_keys, 2), dtype="float32"))
    kinds = torch.full((num_samples, num_keys), float(IMAGE))
    kinds[:, :3] = TEXT
    kinds[-1, 3 + num_keys // 3 :] = PADDING
    entries = torch.cat([centers * (kinds == IMAGE)[..., None], kinds[..., None]], dim=-1)
    return [tensor.to(GPU) for tensor in (q, k, v, gaussians, entries)]


def by_torch(q, k, v, gaussians, entries):
    bias = modulation_bias(gaussians, entries).to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)


def by_kernel(*inputs):
    from bbu_train.head.modulated_attention_function import fused_modulated_attention

    return fused_modulated_attention(*inputs)


def run(attention, inputs, dtype):
    """The output, and the gradients of queries, keys, values and Gaussians."""
    *states, gaussians, entries = (tensor.detach() for tensor in inputs)
    with_gradient = [tensor.to(dtype).requires_grad_() for tensor in states] + [gaussians.clone().requires_grad_()]
    out = attention(*with_gradient, entries)
    weights = torch.sin(torch.arange(out.numel(), device=GPU)).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), with_gradient)]


def relative_error(value, reference):
    return ((value.double() - reference.double()).norm() / reference.double().norm()).item()


SHAPES = [(2, 8, 100, 300, 32), (2, 3, 65, 64, 16), (1, 1, 1, 40, 24), (3, 2, 130, 257, 64)]


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_torchs_attention_up_to_rounding(shape):
    """They are as close to float32 as torch with a mask in half precision, and gradients of Gaussians much closer."""
    inputs = random_inputs(*shape)
    float32, torch_half = run(by_torch, inputs, torch.float32), run(by_torch, inputs, HALF)
    kernel_half = run(by_kernel, inputs, HALF)
    for kernel, peer, reference in zip(kernel_half, torch_half, float32, strict=True):
        assert relative_error(kernel, reference) < 1.25 * relative_error(peer, reference) + 2e-3
    assert relative_error(kernel_half[-1], float32[-1]) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_kernels_equal_torchs_attention(shape):
    """`modulated_attention` does not use the kernels in float32, but there a wrong term of a gradient would show."""
    inputs = random_inputs(*shape)
    expected, kernel = (run(attention, inputs, torch.float32) for attention in (by_torch, by_kernel))
    for value, reference in zip(kernel, expected, strict=True):
        assert relative_error(value, reference) < 5e-3  # products have 10-bit mantissas (TF32)


def test_padding_has_no_influence_and_no_gradient():
    q, k, v, gaussians, entries = random_inputs(2, 2, 20, 90, 32)
    is_padding = (entries[..., 2] == PADDING)[:, None, :, None]
    changed = [torch.where(is_padding, 100 * tensor, tensor) for tensor in (k, v)]
    before = run(by_kernel, (q, k, v, gaussians, entries), HALF)
    after = run(by_kernel, (q, *changed, gaussians, entries), HALF)
    for value, changed_value in zip(before, after, strict=True):
        assert torch.equal(value, changed_value)
    assert not before[2].masked_select(is_padding).any()
    assert not before[3].masked_select(is_padding).any()


def test_gradients_are_the_same_each_time():
    inputs = random_inputs(2, 8, 200, 300, 32)
    for first, second in zip(run(by_kernel, inputs, HALF), run(by_kernel, inputs, HALF), strict=True):
        assert torch.equal(first, second)
