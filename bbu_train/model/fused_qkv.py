"""The language model's attention with queries, keys and values from one matrix product."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention, apply_rotary_pos_emb


class FusedQKVAttention(nn.Module):
    """Replaces Qwen2_5_VLAttention in the language model; parameters and their names stay the same.

    While gradients are computed, the three weight matrices are concatenated at each use and multiplied once. The
    matrices of keys and values are too narrow to keep a GPU busy, and separate products would give three gradients of
    the input to add. Token-by-token generation computes no gradients and uses separate products, because there the
    concatenation would take longer than it saves.
    """

    def __init__(self, stock: Qwen2_5_VLAttention):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = stock.q_proj, stock.k_proj, stock.v_proj, stock.o_proj
        self.config, self.layer_idx = stock.config, stock.layer_idx
        self.head_dim, self.num_key_value_groups = stock.head_dim, stock.num_key_value_groups
        self.is_causal, self.scaling = stock.is_causal, stock.scaling

    def forward(
        self,
        hidden_states: Float[Tensor, "rows tokens width"],
        attention_mask: Tensor | None,
        position_embeddings: tuple[Float[Tensor, "rows tokens size"], Float[Tensor, "rows tokens size"]],
        past_key_values: Cache | None = None,
        **attention_kwargs: Any,
    ) -> tuple[Float[Tensor, "rows tokens width"], Tensor | None]:
        projected = self._project(hidden_states)
        query, key, value = (states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for states in projected)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **attention_kwargs)
        return self.o_proj(out.flatten(2)), weights

    def _project(self, hidden_states: Tensor) -> Sequence[Tensor]:
        layers = self.q_proj, self.k_proj, self.v_proj
        if not torch.is_grad_enabled():
            return [layer(hidden_states) for layer in layers]
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        query, key, value = linear(hidden_states, weight, bias).split([layer.out_features for layer in layers], dim=-1)
        # Kernels want contiguous tensors. Rotary embeddings make contiguous copies of query and key, but not of value.
        return query, key, value.contiguous()


def fuse_qkv(language_model: nn.Module) -> None:
    """Replace the attention of every layer by `FusedQKVAttention`."""
    for layer in language_model.layers:
        layer.self_attn = FusedQKVAttention(layer.self_attn)
