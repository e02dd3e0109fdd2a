"""The head's layers compute what torch's own transformer layers compute with the same weights."""

import pytest
import torch
from torch import nn

from bbu_train.head.caption import CaptionLayer
from bbu_train.head.detr import QueryLayer
from bbu_train.head.layers import Attention, DecoderLayer
from bbu_train.head.memory import Memory
from bbu_train.runtime.seeds import generator

D_MODEL, NUM_HEADS = 16, 2


@pytest.fixture(autouse=True)
def _weights():
    torch.manual_seed(0)


def random(name, *shape):
    return torch.from_numpy(generator("layers", name).standard_normal(shape, dtype="float32"))


def copy_attention(attention: Attention, peer: nn.MultiheadAttention):
    projections = (attention.query, attention.key, attention.value)
    peer.in_proj_weight.data = torch.cat([linear.weight.data for linear in projections])
    peer.in_proj_bias.data = torch.cat([linear.bias.data for linear in projections])
    peer.out_proj.load_state_dict(attention.out.state_dict())


def torch_layer(layer: DecoderLayer) -> nn.TransformerDecoderLayer:
    """torch's pre-norm decoder layer with the weights of `layer`, whose norms get random ones first."""
    peer = nn.TransformerDecoderLayer(
        D_MODEL, NUM_HEADS, 4 * D_MODEL, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    copy_attention(layer.self_attention, peer.self_attn)
    copy_attention(layer.cross_attention, peer.multihead_attn)
    peer.linear1.load_state_dict(layer.feed_forward[0].state_dict())
    peer.linear2.load_state_dict(layer.feed_forward[2].state_dict())
    for i, norm in enumerate(layer.norms):
        norm.weight.data, norm.bias.data = random(f"norm weight {i}", D_MODEL), random(f"norm bias {i}", D_MODEL)
        getattr(peer, f"norm{i + 1}").load_state_dict(norm.state_dict())
    return peer


@pytest.fixture
def memory():
    """The states of a memory of two samples, and its mask."""
    mask = torch.tensor([[True, True, True, False, True], [True, True, False, False, True]])
    return random("memory", 2, 5, D_MODEL), mask


def test_attention_is_torchs_multi_head_attention(memory):
    keys, mask = memory
    attention, peer = Attention(D_MODEL, NUM_HEADS), nn.MultiheadAttention(D_MODEL, NUM_HEADS, batch_first=True)
    copy_attention(attention, peer)
    queries, values = random("queries", 2, 3, D_MODEL), random("values", 2, 5, D_MODEL)
    expected, _ = peer(queries, keys, values, key_padding_mask=~mask)
    torch.testing.assert_close(attention(queries, attention.keys_values(keys, values, mask)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_masked_key_has_no_influence(memory, dtype):
    keys, mask = memory
    attention, queries = Attention(D_MODEL, NUM_HEADS).to(dtype), random("queries", 2, 3, D_MODEL).to(dtype)
    changed = torch.where(mask[..., None], keys, 100 * keys).to(dtype)
    out, changed_out = (
        attention(queries, attention.keys_values(states, states, mask)) for states in (keys.to(dtype), changed)
    )
    assert torch.equal(out, changed_out)


def test_a_query_layer_without_positions_is_torchs_decoder_layer(memory):
    states, mask = memory
    layer = QueryLayer(D_MODEL, NUM_HEADS)
    queries = random("queries", 2, 3, D_MODEL)
    expected = torch_layer(layer)(queries, states, memory_key_padding_mask=~mask)
    out = layer(queries, torch.zeros(3, D_MODEL), Memory(states, torch.zeros_like(states), mask))
    torch.testing.assert_close(out, expected)


def test_positions_are_added_to_queries_and_keys_and_never_to_values(memory):
    states, mask = memory
    layer = QueryLayer(D_MODEL, NUM_HEADS)
    queries, query_pos = random("queries", 2, 3, D_MODEL), random("query pos", 3, D_MODEL)
    memory_pos = random("memory pos", 2, 5, D_MODEL)
    peer = torch_layer(layer)
    normalised = peer.norm1(queries)
    expected = queries + peer.self_attn(normalised + query_pos, normalised + query_pos, normalised)[0]
    with_pos = peer.norm2(expected) + query_pos
    expected = expected + peer.multihead_attn(with_pos, states + memory_pos, states, key_padding_mask=~mask)[0]
    expected = expected + peer.linear2(peer.activation(peer.linear1(peer.norm3(expected))))
    torch.testing.assert_close(layer(queries, query_pos, Memory(states, memory_pos, mask)), expected)


def test_a_caption_layer_is_torchs_causal_decoder_layer_for_each_caption(memory):
    states, mask = memory
    layer = CaptionLayer(D_MODEL, NUM_HEADS)
    peer, causal = torch_layer(layer), nn.Transformer.generate_square_subsequent_mask(4)
    captions = random("captions", 2, 3, 4, D_MODEL)
    out, _ = layer(captions, None, layer.cross_attention.keys_values(states, states, mask))
    for slot in range(3):
        expected = peer(captions[:, slot], states, causal, memory_key_padding_mask=(~mask).float() * -1e9)
        torch.testing.assert_close(out[:, slot], expected)
