"""Attention within segments, compared with torch's on each segment alone and with transformers' eager attention."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

from bbu_train.errors import InputError
from bbu_train.model.attention import (
    fastest_installed,
    flash_attention_2,
    flash_attention_4,
    resolve_attention_name,
    sdpa,
    varlen,
)
from bbu_train.runtime.seeds import generator

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SCALE = 0.3  # differs from the default 1 / sqrt(size), so the tests notice if it is not passed on
SEGMENTS = {
    "equal": [0, 4, 8, 12, 16, 20],
    "unequal": [0, 1, 4, 8, 13, 16, 20],
    "one": [0, 20],
}


def states(num_rows=1, num_heads=4, num_kv_heads=2, num_tokens=20, size=8):
    def random(name, heads):
        values = generator("attention", name).standard_normal((num_rows, heads, num_tokens, size), dtype="float32")
        return torch.from_numpy(values).requires_grad_()

    return random("query", num_heads), random("key", num_kv_heads), random("value", num_kv_heads)


def layer(is_causal=True, num_groups=2):
    """Return the attributes that an attention function reads from the layer that calls it."""
    return SimpleNamespace(is_causal=is_causal, num_key_value_groups=num_groups, training=True)


def segment_wise(query, key, value, bounds, is_causal):
    """Apply torch's attention to each segment of one row alone, with repeated key and value heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = [
        scaled_dot_product_attention(*(x[:, :, a:b] for x in (query, key, value)), is_causal=is_causal, scale=SCALE)
        for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def gradients(out, inputs):
    weights = torch.from_numpy(generator("weights").standard_normal(tuple(out.shape), dtype="float32"))
    return torch.autograd.grad((out * weights).sum(), inputs)


def bounds_of(name):
    return torch.tensor(SEGMENTS[name], dtype=torch.int32)


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_every_segment_gets_the_same_result_as_alone(name, is_causal, num_kv_heads):
    inputs = states(num_kv_heads=num_kv_heads)
    out, _ = sdpa(layer(), *inputs, None, SCALE, bounds_of(name), is_causal=is_causal)
    expected = segment_wise(*inputs, SEGMENTS[name], is_causal)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, inputs), gradients(expected, inputs))


def test_compiled_code_around_sdpa_is_not_recompiled_for_other_segments():
    inputs = states()

    def twice(bounds):
        return 2 * sdpa(layer(), *inputs, None, SCALE, bounds)[0]

    compiled = torch.compile(twice, backend="eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for name, bounds in SEGMENTS.items():
            torch.testing.assert_close(compiled(bounds_of(name)), 2 * segment_wise(*inputs, bounds, True))


@pytest.mark.parametrize("is_causal", [True, False])
def test_segments_equal_transformers_eager_attention_with_a_block_diagonal_mask(is_causal):
    inputs = states()
    segment = torch.bucketize(torch.arange(20), bounds_of("unequal"), right=True)
    allowed = segment[:, None] == segment[None]
    if is_causal:
        allowed = allowed.tril()
    mask = torch.zeros(20, 20).masked_fill(~allowed, float("-inf"))[None, None]
    expected, _ = eager_attention_forward(layer(), *inputs, mask, SCALE)
    out, _ = sdpa(layer(), *inputs, None, SCALE, bounds_of("unequal"), is_causal=is_causal)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, inputs), gradients(expected, inputs))


def test_segment_boundaries_count_through_consecutive_rows():
    inputs = states(num_rows=2, num_tokens=10)
    out, _ = sdpa(layer(), *inputs, None, SCALE, torch.tensor([0, 3, 10, 18, 20], dtype=torch.int32))
    first = segment_wise(*(x[:1] for x in inputs), [0, 3, 10], True)
    second = segment_wise(*(x[1:] for x in inputs), [0, 8, 10], True)
    torch.testing.assert_close(out, torch.cat([first, second]))


def test_without_is_causal_in_the_call_the_layers_own_setting_applies():
    inputs = states()
    out, _ = sdpa(layer(is_causal=False), *inputs, None, SCALE, bounds_of("unequal"))
    torch.testing.assert_close(out, segment_wise(*inputs, SEGMENTS["unequal"], False))


def test_no_token_attends_across_packed_segments():
    query, key, value = states()
    before, _ = sdpa(layer(), query, key, value, None, SCALE, bounds_of("unequal"))
    changed = torch.cat([key[:, :, :13], 9 - key[:, :, 13:]], dim=2)
    after, _ = sdpa(layer(), query, changed, value, None, SCALE, bounds_of("unequal"))
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.equal(before[:, 13:], after[:, 13:])


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels run on CUDA only")
has_flash_2 = bool(find_spec("flash_attn")) and bool(find_spec("flash_attn.flash_attn_interface"))
has_flash_4 = bool(find_spec("flash_attn")) and bool(find_spec("flash_attn.cute")) and bool(find_spec("cutlass"))
needs_flash_2 = pytest.mark.skipif(not has_flash_2, reason="the flash-attn package is not installed")
needs_flash_4 = pytest.mark.skipif(not has_flash_4, reason="the flash-attn-4 package is not installed")
KERNELS = [
    pytest.param(varlen, id="varlen"),
    pytest.param(flash_attention_2, marks=needs_flash_2, id="flash_attention_2"),
    pytest.param(flash_attention_4, marks=needs_flash_4, id="flash_attention_4"),
]
LONG = [0, 65, 300, 301, 1000]
SHORT = [0, 64, 80, 144, 160]


def bfloat16_states(size, num_tokens):
    inputs = states(size=size, num_tokens=num_tokens)
    return [x.detach().to(GPU, torch.bfloat16).requires_grad_() for x in inputs]


def relative_error(actual, expected):
    """||actual - expected|| / ||expected||. bfloat16 rounding changes each number by up to 4e-3 of its value."""
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


@needs_gpu
@pytest.mark.parametrize("size", [80, 128])  # head sizes of the vision tower and of the language model
@pytest.mark.parametrize(("ends", "is_causal"), [(LONG, True), (LONG, False), (SHORT, False)])
@pytest.mark.parametrize("function", KERNELS)
def test_a_kernel_for_segments_equals_sdpa_in_half_precision(function, ends, is_causal, size):
    inputs, bounds = bfloat16_states(size, ends[-1]), torch.tensor(ends, dtype=torch.int32, device=GPU)
    longest = int(bounds.diff().max())
    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected, _ = sdpa(layer(), *exact, None, SCALE, bounds, is_causal=is_causal)
    out, _ = function(layer(), *inputs, None, SCALE, bounds, longest, is_causal=is_causal)
    assert relative_error(out, expected) < 1e-2
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad(out, inputs, weights.bfloat16())
    for gradient, expected_gradient in zip(gradients, torch.autograd.grad(expected, exact, weights), strict=True):
        assert relative_error(gradient, expected_gradient) < 2e-2


@needs_gpu
@pytest.mark.parametrize(("ends", "is_causal"), [(LONG, True), (LONG, False), (SHORT, False)])
@pytest.mark.parametrize("function", KERNELS)
def test_a_kernel_lets_no_token_attend_across_packed_segments(function, ends, is_causal):
    query, key, value = (x.detach() for x in bfloat16_states(128, ends[-1]))
    bounds = torch.tensor(ends, dtype=torch.int32, device=GPU)
    first = ends[2]  # the first token that changes
    settings = SCALE, bounds, int(bounds.diff().max())
    before, _ = function(layer(), query, key, value, None, *settings, is_causal=is_causal)
    changed = torch.cat([key[:, :, :first], 9 - key[:, :, first:]], dim=2)
    after, _ = function(layer(), query, changed, value, None, *settings, is_causal=is_causal)
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.equal(before[:, first:], after[:, first:])


def test_the_fastest_kernel_is_flash_attention_4_only_from_hopper_on():
    before_hopper = "flash_attention_2" if has_flash_2 else "varlen"
    assert fastest_installed((8, 9)) == before_hopper
    assert fastest_installed((9, 0)) == ("flash_attention_4" if has_flash_4 else before_hopper)


@pytest.mark.parametrize("attention", ["varlen", "flash_attention_2", "flash_attention_4"])
@pytest.mark.parametrize(("device", "dtype"), [(CPU, torch.bfloat16), (GPU, torch.float32)])
def test_a_kernel_that_cannot_run_here_is_refused(attention, device, dtype):
    with pytest.raises(InputError, match=rf"model\.attention={attention} needs a GPU and .*has {device} and {dtype}"):
        resolve_attention_name(attention, device, dtype)


@pytest.mark.parametrize(
    ("attention", "is_installed", "command"),
    [
        ("flash_attention_2", has_flash_2, "pip install --no-build-isolation 'flash-attn"),
        ("flash_attention_4", has_flash_4, "pip install 'flash-attn-4"),
    ],
)
def test_the_error_for_a_missing_package_says_how_to_install_it(attention, is_installed, command):
    if is_installed:
        pytest.skip(f"the package of {attention} is installed")
    with pytest.raises(InputError, match=f"needs a package that is missing: {command}"):
        resolve_attention_name(attention, GPU, torch.bfloat16)


@pytest.mark.skipif(has_flash_4, reason="the package of flash_attention_4 is installed")
def test_the_cute_folder_of_flash_attention_2_is_not_mistaken_for_flash_attention_4(tmp_path, monkeypatch):
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "flash_attn_interface.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert fastest_installed((9, 0)) == "flash_attention_2"
    with pytest.raises(InputError, match="needs a package that is missing: pip install 'flash-attn-4"):
        resolve_attention_name("flash_attention_4", GPU, torch.bfloat16)


def test_an_unknown_attention_names_the_choices():
    with pytest.raises(
        InputError, match=r"model\.attention=eager is unknown; take one of sdpa, varlen, flash_attention_2, "
    ):
        resolve_attention_name("eager", CPU, torch.float32)
