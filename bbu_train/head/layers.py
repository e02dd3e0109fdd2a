"""Transformer layers of the head: attention with a cache, and the decoder layer that both decoders use."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

KeysValues = tuple[Float[Tensor, "_ heads _ _"], Float[Tensor, "_ heads _ _"]]
"""As wide as a head, or by eight channels wider where there is a mask."""
BARRED = -(2.0**20)  # of a score: its key is not read, whatever else it would have; exact in any dtype


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over `num_heads` heads (Vaswani et al. 2017), keys and values kept apart.

    `keys_values` may be computed once and used for many queries: a caption decoder reads one memory at every step.
    There is no dropout, so that a step gives the same gradient in every layout.
    """

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        assert d_model % num_heads == 0, f"d_model {d_model} is not a multiple of num_heads {num_heads}"
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(4))

    def keys_values(
        self,
        keys: Float[Tensor, "n keys model"],
        values: Float[Tensor, "n keys model"],
        mask: Bool[Tensor, "n keys"] | None = None,
    ) -> KeysValues:
        """`mask` is False where a key must not be read; a query that may read no key at all would read each alike."""
        keys, values = self._split(self.key(keys)), self._split(self.value(values))
        if mask is None:
            return keys, values
        # As eight more channels, of which one is used: the fastest kernels take no mask, and want sizes in eights.
        barred = pad(~mask[:, None, :, None], (0, 7)).expand(*keys.shape[:3], 8)
        return torch.cat([keys, barred], dim=-1), pad(values, (0, 8))

    def forward(
        self, queries: Float[Tensor, "n queries model"], keys_values: KeysValues, is_causal: bool = False
    ) -> Float[Tensor, "n queries model"]:
        asking, (keys, values) = self.asking(queries), keys_values
        size = asking.shape[-1]
        asking = pad(asking, (0, keys.shape[-1] - size), value=BARRED * size**0.5)
        out = scaled_dot_product_attention(asking, keys, values, is_causal=is_causal, scale=size**-0.5)
        return self.answer(out[..., :size])

    def asking(self, queries: Float[Tensor, "n queries model"]) -> Float[Tensor, "n heads queries size"]:
        return self._split(self.query(queries))

    def answer(self, read: Float[Tensor, "n heads queries size"]) -> Float[Tensor, "n queries model"]:
        return self.out(read.transpose(1, 2).flatten(2))

    def _split(self, states: Float[Tensor, "n tokens model"]) -> Float[Tensor, "n heads tokens size"]:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers around a GELU, four times as wide inside."""

    def __init__(self, d_model: int):
        super().__init__(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))


class Mlp(nn.Sequential):
    """`num_layers` linear layers with ReLU between them, as DETR's box head."""

    def __init__(self, d_model: int, d_out: int, num_layers: int):
        hidden = [layer for _ in range(num_layers - 1) for layer in (nn.Linear(d_model, d_model), nn.ReLU())]
        super().__init__(*hidden, nn.Linear(d_model, d_out))


class Objectness(nn.Linear):
    """The logit of being an object. Few begin as one: focal loss would diverge if most did (Lin et al. 2017)."""

    PRIOR = 0.01

    def __init__(self, d_model: int):
        super().__init__(d_model, 1)
        nn.init.constant_(self.bias, -math.log((1 - self.PRIOR) / self.PRIOR))


class DecoderLayer(nn.Module):
    """The parts of a pre-norm decoder layer; how they read each other is each decoder's own."""

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        self.self_attention = Attention(d_model, num_heads)
        self.cross_attention = Attention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))


def rank_in_sample(samples: Int[Tensor, "objects"], num_samples: int) -> Int[Tensor, "objects"]:
    """How many objects of the same sample come before each; `samples` ascends."""
    first = torch.searchsorted(samples, torch.arange(num_samples, device=samples.device))
    return torch.arange(len(samples), device=samples.device) - first[samples]
