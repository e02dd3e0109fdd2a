"""The language model's attention, with queries, keys and values from one product."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention, apply_rotary_pos_emb


class JoinedAttention(nn.Module):
    """In place of transformers' attention of Qwen2.5-VL's language model; parameters and their names are the same.

    While gradients are computed, the three matrices are laid together at each use, and multiplied once: those of keys
    and values are too narrow to keep a GPU busy, and three gradients of the input would have to be added. An answer
    that is written token by token has no gradients, and to lay them together would take longer than it spares.
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
        **which,
    ) -> tuple[Float[Tensor, "rows tokens width"], Tensor | None]:
        projected = self._project(hidden_states)
        query, key, value = (each.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for each in projected)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        read, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **which)
        return self.o_proj(read.flatten(2)), weights

    def _project(self, hidden_states: Tensor) -> Sequence[Tensor]:
        layers = self.q_proj, self.k_proj, self.v_proj
        if not torch.is_grad_enabled():
            return [layer(hidden_states) for layer in layers]
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        query, key, value = linear(hidden_states, weight, bias).split([layer.out_features for layer in layers], dim=-1)
        return query, key, value.contiguous()  # as kernels have it; positions turn the others into new ones


def join_projections(language_model: nn.Module) -> None:
    for layer in language_model.layers:
        layer.self_attn = JoinedAttention(layer.self_attn)
