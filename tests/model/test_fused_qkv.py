"""The language model's attention with fused projections, compared with transformers' own."""

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention, Qwen2_5_VLTextModel

from bbu_train.model.fused_qkv import FusedQKVAttention


@pytest.fixture
def language_model(make_model):
    return make_model("head=none").backbone.model.language_model


@pytest.fixture
def stock(language_model):
    torch.manual_seed(2)
    attention = Qwen2_5_VLAttention(language_model.config, layer_idx=0)
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        torch.nn.init.normal_(layer.bias)
    return attention


@pytest.fixture
def inputs(language_model):
    """Hidden states of two rows, and the keyword arguments of attention for segments of 4, 3 and 7 tokens."""
    torch.manual_seed(1)
    hidden = torch.randn(2, 7, language_model.config.hidden_size).requires_grad_()
    positions = torch.stack([torch.arange(7), 7 + torch.arange(7)]).expand(3, 2, 7)
    bounds = torch.tensor([0, 4, 7, 14], dtype=torch.int32)
    kwargs = {"attention_mask": None, "position_embeddings": language_model.rotary_emb(hidden, positions)}
    return hidden, kwargs | {"cu_seq_lens_q": bounds, "max_length_q": 7}


def run(attention, hidden, kwargs):
    """Return the output, and the gradients of the input and of all parameters."""
    out, _ = attention(hidden, **kwargs)
    weights = torch.sin(torch.arange(out.numel())).view(out.shape)
    return out, *torch.autograd.grad((out * weights).sum(), [hidden, *attention.parameters()])


def test_outputs_and_gradients_equal_those_of_transformers_attention(stock, inputs):
    torch.testing.assert_close(run(FusedQKVAttention(stock), *inputs), run(stock, *inputs))


def test_without_gradients_outputs_and_cache_equal_those_of_transformers_attention(stock, inputs):
    hidden, kwargs = inputs
    caches = [DynamicCache(config=stock.config) for _ in range(2)]
    with torch.no_grad():
        outs = [
            attention(hidden, **kwargs, past_key_values=cache)[0]
            for attention, cache in zip((FusedQKVAttention(stock), stock), caches, strict=True)
        ]
    assert torch.equal(*outs)
    assert torch.equal(caches[0].layers[0].keys, caches[1].layers[0].keys)
    assert torch.equal(caches[0].layers[0].values, caches[1].layers[0].values)


def test_every_layer_is_fused_and_keeps_its_parameter_names(language_model):
    assert not any(isinstance(module, Qwen2_5_VLAttention) for module in language_model.modules())
    config = copy.deepcopy(language_model.config)
    config._attn_implementation = "sdpa"
    stock = Qwen2_5_VLTextModel(config)
    assert [name for name, _ in stock.named_parameters()] == [name for name, _ in language_model.named_parameters()]
    stock.load_state_dict(language_model.state_dict())
