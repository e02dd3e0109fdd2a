"""From the backbone's features to what the head's decoder reads."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bbu_train.ops.sine_encoding import sine_encoding
from bbu_train.types.batch import MemoryIndex


class Adapter(nn.Module):
    """P(x + U gelu(D norm(x))): a residual bottleneck of width / ratio (Houlsby et al. 2019), then P to `d_model`.

    U starts at zero, so that the adapter starts as a projection of the features as they are.
    """

    def __init__(self, width: int, ratio: int, d_model: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, width // ratio)
        self.up = nn.Linear(width // ratio, width)
        self.project = nn.Linear(width, d_model)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Float[Tensor, "*n width"]) -> Float[Tensor, "*n model"]:
        normalised = self.norm(features)
        return self.project(normalised + self.up(nn.functional.gelu(self.down(normalised))))


class Memory(NamedTuple):
    """What a decoder reads of each sample: states, where each of them is, and which are real and not padding."""

    states: Float[Tensor, "samples memory model"]
    places: Float[Tensor, "samples memory model"]
    mask: Bool[Tensor, "samples memory"]

    @property
    def keys(self) -> Float[Tensor, "samples memory model"]:
        """As in DETR, a state is found by what it is and by where it is."""
        return self.states + self.places


def gather(vision: Float[Tensor, "merged model"], text: Float[Tensor, "flat model"], index: MemoryIndex) -> Memory:
    """Each sample's memory: its student's image tokens, then its text."""
    states = torch.cat([vision[index.vision], text[index.text]], dim=1)
    mask = torch.cat([index.vision_mask, index.text_mask], dim=1)
    return Memory(states, places(index, states.shape[-1]), mask)


def places(index: MemoryIndex, d_model: int) -> Float[Tensor, "samples memory model"]:
    """Where each memory entry is: (y, x) in the picture for image tokens, the place in the sample for text.

    Sines of either kind, as DETR's: half of the channels for y and half for x, the picture spanning 2 pi.
    """
    text = sine_encoding(index.text_positions.float(), d_model)
    return torch.cat([in_picture(index.vision_centers, d_model), text], dim=1)


def in_picture(centers: Float[Tensor, "*n 2"], d_model: int) -> Float[Tensor, "*n model"]:
    """Of (x, y), the picture being the unit square."""
    x, y = (2 * torch.pi * centers).unbind(-1)
    return torch.cat([sine_encoding(y, d_model // 2), sine_encoding(x, d_model // 2)], dim=-1)
