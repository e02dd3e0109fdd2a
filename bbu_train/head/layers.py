"""Transformer layers of the head: attention with reusable keys and values, and the parts of a decoder layer."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

KeysValues = tuple[Float[Tensor, "_ heads _ _"], Float[Tensor, "_ heads _ _"]]
"""Projected keys and values, with `d_model / num_heads` channels a head, or 8 more if they carry a mask."""
MASK_BIAS = -(2.0**20)  # added to the score of a masked key; outweighs any score in float32 and bfloat16
MASK_CHANNELS = 8


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over `num_heads` heads (Vaswani et al. 2017).

    Keys and values are projected separately from queries and can be reused: a caption decoder attends to the same
    memory at every step. There is no dropout, so that a step has the same gradient in every batch layout.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
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
        """Project keys and values. `mask` is False for keys to ignore.

        A sample must keep at least one key: queries would attend to all keys if all were masked.

        The mask travels as 8 extra head channels, of which 1 is used: the fast kernels accept no mask and need head
        sizes divisible by 8.
        """
        keys, values = self._split_heads(self.key(keys)), self._split_heads(self.value(values))
        if mask is None:
            return keys, values
        is_masked = pad(~mask[:, None, :, None], (0, MASK_CHANNELS - 1)).expand(*keys.shape[:3], MASK_CHANNELS)
        return torch.cat([keys, is_masked], dim=-1), pad(values, (0, MASK_CHANNELS))

    def forward(
        self, queries: Float[Tensor, "n queries model"], keys_values: KeysValues, is_causal: bool = False
    ) -> Float[Tensor, "n queries model"]:
        queries, (keys, values) = self.project_queries(queries), keys_values
        size = queries.shape[-1]
        # The scale 1 / sqrt(d) also applies to the mask channels, hence the factor sqrt(d).
        queries = pad(queries, (0, keys.shape[-1] - size), value=MASK_BIAS * size**0.5)
        out = scaled_dot_product_attention(queries, keys, values, is_causal=is_causal, scale=size**-0.5)
        return self.project_output(out[..., :size])

    def project_queries(self, queries: Float[Tensor, "n queries model"]) -> Float[Tensor, "n heads queries size"]:
        return self._split_heads(self.query(queries))

    def project_output(self, out: Float[Tensor, "n heads queries size"]) -> Float[Tensor, "n queries model"]:
        return self.out(out.transpose(1, 2).flatten(2))

    def _split_heads(self, states: Float[Tensor, "n tokens model"]) -> Float[Tensor, "n heads tokens size"]:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between them; the hidden width is 4 `d_model`."""

    def __init__(self, d_model: int) -> None:
        super().__init__(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))


class Mlp(nn.Sequential):
    """`num_layers` linear layers with ReLU between them, as in DETR's box head."""

    def __init__(self, d_model: int, d_out: int, num_layers: int) -> None:
        hidden = [layer for _ in range(num_layers - 1) for layer in (nn.Linear(d_model, d_model), nn.ReLU())]
        super().__init__(*hidden, nn.Linear(d_model, d_out))


class ObjectnessHead(nn.Linear):
    """The logit of the probability that a query is an object.

    The bias starts at logit(PRIOR): focal loss would diverge if most queries started as objects (Lin et al. 2017).
    """

    PRIOR = 0.01

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, 1)
        nn.init.constant_(self.bias, -math.log((1 - self.PRIOR) / self.PRIOR))


class DecoderLayer(nn.Module):
    """The submodules of a pre-norm decoder layer. Each subclass defines its own `forward`."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.self_attention = Attention(d_model, num_heads)
        self.cross_attention = Attention(d_model, num_heads)
        self.feed_forward = FeedForward(d_model)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))


def rank_in_sample(samples: Int[Tensor, "objects"], num_samples: int) -> Int[Tensor, "objects"]:
    """Count the objects of the same sample before each object. `samples` is in ascending order."""
    first = torch.searchsorted(samples, torch.arange(num_samples, device=samples.device))
    return torch.arange(len(samples), device=samples.device) - first[samples]
