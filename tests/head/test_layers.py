"""The head's layers compute what torch's own transformer layers compute with the same weights."""

import pytest
import torch
from torch import nn

from bbu_train.head.adapter import Memory
from bbu_train.head.caption import CaptionLayer
from bbu_train.head.detr import QueryLayer
from bbu_train.head.layers import Attention
from bbu_train.runtime.seeds import generator

D_MODEL, NUM_HEADS = 16, 2


@pytest.fixture(autouse=True)
def _weights():
    torch.manual_seed(0)


def random(name, *shape):
    return torch.from_numpy(generator("layers", name).standard_normal(shape, dtype="float32"))


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention):
    projections = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([linear.weight.data for linear in projections])
    theirs.in_proj_bias.data = torch.cat([linear.bias.data for linear in projections])
    theirs.out_proj.load_state_dict(ours.out.state_dict())


def torch_layer(ours) -> nn.TransformerDecoderLayer:
    """torch's pre-norm decoder layer with the weights of one of ours."""
    theirs = nn.TransformerDecoderLayer(
        D_MODEL, NUM_HEADS, 4 * D_MODEL, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    copy_attention(ours.self_attention, theirs.self_attn)
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())
    for i, norm in enumerate(ours.norms):
        norm.weight.data, norm.bias.data = random(f"norm weight {i}", D_MODEL), random(f"norm bias {i}", D_MODEL)
        getattr(theirs, f"norm{i + 1}").load_state_dict(norm.state_dict())
    return theirs


@pytest.fixture
def memory():
    """Of two samples, and which of it is real."""
    mask = torch.tensor([[True, True, True, False, True], [True, True, False, False, True]])
    return random("memory", 2, 5, D_MODEL), mask


def test_attention_is_torchs_multi_head_attention(memory):
    keys, mask = memory
    ours, theirs = Attention(D_MODEL, NUM_HEADS), nn.MultiheadAttention(D_MODEL, NUM_HEADS, batch_first=True)
    copy_attention(ours, theirs)
    queries, values = random("queries", 2, 3, D_MODEL), random("values", 2, 5, D_MODEL)
    expected, _ = theirs(queries, keys, values, key_padding_mask=~mask)
    torch.testing.assert_close(ours(queries, ours.keys_values(keys, values, mask)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_comes_from_a_key_that_must_not_be_read(memory, dtype):
    keys, mask = memory
    ours, queries = Attention(D_MODEL, NUM_HEADS).to(dtype), random("queries", 2, 3, D_MODEL).to(dtype)
    changed = torch.where(mask[..., None], keys, 100 * keys).to(dtype)
    out, other = (ours(queries, ours.keys_values(its, its, mask)) for its in (keys.to(dtype), changed))
    assert torch.equal(out, other)


def test_a_query_layer_is_torchs_decoder_layer_where_nothing_has_a_place(memory):
    states, mask = memory
    ours = QueryLayer(D_MODEL, NUM_HEADS)
    queries = random("queries", 2, 3, D_MODEL)
    expected = torch_layer(ours)(queries, states, memory_key_padding_mask=~mask)
    out = ours(queries, torch.zeros(3, D_MODEL), Memory(states, torch.zeros_like(states), mask))
    torch.testing.assert_close(out, expected)


def test_places_are_added_to_what_asks_and_what_is_asked_and_never_to_what_is_read(memory):
    states, mask = memory
    ours = QueryLayer(D_MODEL, NUM_HEADS)
    queries, places = random("queries", 2, 3, D_MODEL), random("places", 3, D_MODEL)
    memory_places = random("memory places", 2, 5, D_MODEL)
    theirs = torch_layer(ours)
    normalised = theirs.norm1(queries)
    expected = queries + theirs.self_attn(normalised + places, normalised + places, normalised)[0]
    asked = theirs.norm2(expected) + places
    expected = expected + theirs.multihead_attn(asked, states + memory_places, states, key_padding_mask=~mask)[0]
    expected = expected + theirs.linear2(theirs.activation(theirs.linear1(theirs.norm3(expected))))
    torch.testing.assert_close(ours(queries, places, Memory(states, memory_places, mask)), expected)


def test_a_caption_layer_is_torchs_causal_decoder_layer_for_each_caption(memory):
    states, mask = memory
    ours = CaptionLayer(D_MODEL, NUM_HEADS)
    theirs, causal = torch_layer(ours), nn.Transformer.generate_square_subsequent_mask(4)
    captions = random("captions", 2, 3, 4, D_MODEL)
    out, _ = ours(captions, None, ours.cross_attention.keys_values(states, states, mask))
    for slot in range(3):
        expected = theirs(captions[:, slot], states, causal, memory_key_padding_mask=(~mask).float() * -1e9)
        torch.testing.assert_close(out[:, slot], expected)
