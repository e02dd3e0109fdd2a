"""The detection memory: what the decoders of the head attend to, with its position encodings."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bbu_train.ops.sine_encoding import sine_encoding
from bbu_train.types.batch import MemoryIndex


class Memory(NamedTuple):
    """The entries of each sample that a decoder attends to. `mask` is False for padding."""

    states: Float[Tensor, "samples memory model"]
    pos_embed: Float[Tensor, "samples memory model"]
    mask: Bool[Tensor, "samples memory"]

    @property
    def keys(self) -> Float[Tensor, "samples memory model"]:
        """The inputs of the key projection: states with their position added, as in DETR."""
        return self.states + self.pos_embed


def gather_memory(
    vision: Float[Tensor, "merged model"], text: Float[Tensor, "flat model"], index: MemoryIndex
) -> Memory:
    """Return each sample's memory: the image tokens of its student picture, then its text."""
    states = torch.cat([vision[index.vision], text[index.text]], dim=1)
    mask = torch.cat([index.vision_mask, index.text_mask], dim=1)
    return Memory(states, memory_pos_embed(index, states.shape[-1]), mask)


def memory_pos_embed(index: MemoryIndex, d_model: int) -> Float[Tensor, "samples memory model"]:
    """Encode the position of each memory entry: its centre for an image token, its index in the sample for text."""
    text = sine_encoding(index.text_positions.float(), d_model)
    return torch.cat([point_sine_encoding(index.vision_centers, d_model), text], dim=1)


def point_sine_encoding(points: Float[Tensor, "*n 2"], d_model: int) -> Float[Tensor, "*n model"]:
    """Encode (x, y) in the unit square: y in the first half of the channels and x in the second, as in DETR.

    The sides of the picture are scaled to 2 pi, which is one period of the fastest sine.
    """
    x, y = (2 * torch.pi * points).unbind(-1)
    return torch.cat([sine_encoding(y, d_model // 2), sine_encoding(x, d_model // 2)], dim=-1)
