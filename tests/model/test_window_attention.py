"""The kernel for attention within windows, compared with transformers' attention of the vision tower."""

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on CUDA only")
ENDS = [0, 64, 80, 128, 140, 204]  # full windows, and partial ones at a picture's edge


@pytest.fixture(params=[80, 64, 16])
def size(request):
    """Channels of a head in the published models, in model=small and in model=tiny."""
    return request.param


@pytest.fixture
def inputs(size):
    """Hidden states, boundaries, and the cosines and sines of rotary embeddings, on the GPU."""
    torch.manual_seed(0)
    angles = 3 * torch.randn(ENDS[-1], size // 2).repeat(1, 2)
    hidden = torch.randn(ENDS[-1], 4 * size).cuda().requires_grad_()
    return hidden, torch.tensor(ENDS, dtype=torch.int32).cuda(), (angles.cos().cuda(), angles.sin().cuda())


@pytest.fixture
def stock(size):
    """transformers' attention with four heads."""
    torch.manual_seed(1)
    config = Qwen2_5_VLVisionConfig(hidden_size=4 * size, num_heads=4)
    config._attn_implementation = "sdpa"
    return Qwen2_5_VLVisionAttention(config).cuda()


def run(attention, hidden, bounds, rotary, dtype):
    """Return the output, and the gradients of the input and of all parameters."""
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        out = attention(hidden, cu_seqlens=bounds, position_embeddings=rotary)
    weights = torch.sin(torch.arange(out.numel(), device="cuda")).view(out.shape)
    return out, *torch.autograd.grad((out.float() * weights).sum(), [hidden, *attention.parameters()])


def relative_error(actual, expected):
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


def test_windows_equal_transformers_attention_up_to_rounding(stock, inputs):
    from bbu_train.model.window_attention import WindowAttention

    exact = run(stock, *inputs, torch.float32)
    stock_values = run(stock, *inputs, torch.bfloat16)
    values = run(WindowAttention(stock), *inputs, torch.bfloat16)
    for value, stock_value, expected in zip(values, stock_values, exact, strict=True):
        assert relative_error(value, expected) < 1.25 * relative_error(stock_value, expected) + 1e-3


def test_no_patch_attends_to_another_window(stock, inputs):
    from bbu_train.model.window_attention import WindowAttention

    hidden, bounds, rotary = inputs
    attention = WindowAttention(stock)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        before = attention(hidden, cu_seqlens=bounds, position_embeddings=rotary)
        changed = torch.cat([hidden[:128], 9 - hidden[128:]])
        after = attention(changed, cu_seqlens=bounds, position_embeddings=rotary)
    assert torch.equal(before[:128], after[:128])
    assert not torch.equal(before[128:], after[128:])


def test_windows_that_are_too_large_keep_the_stock_attention(stock):
    from bbu_train.model.window_attention import WindowAttention, replace_windows

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = stock

    class Tower(nn.Module):
        def __init__(self, window_size):
            super().__init__()
            self.config = Qwen2_5_VLVisionConfig(window_size=window_size, patch_size=14, fullatt_block_indexes=[1])
            self.blocks = nn.ModuleList(Block() for _ in range(3))

    for window_size, expected in ((112, [True, False, True]), (224, [False] * 3)):
        tower = Tower(window_size)
        replace_windows(tower)
        assert [isinstance(block.attn, WindowAttention) for block in tower.blocks] == expected
