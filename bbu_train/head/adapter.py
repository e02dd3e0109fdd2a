"""From the backbone's features to what the head's decoder reads."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bbu_train.head.layers import sine
from bbu_train.types import MemoryIndex


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


def gather_memory(
    vision: Float[Tensor, "merged model"], text: Float[Tensor, "flat model"], index: MemoryIndex
) -> tuple[Float[Tensor, "samples memory model"], Bool[Tensor, "samples memory"]]:
    """Each sample's memory, its student's image tokens before its text, and which entries of it are real."""
    memory = torch.cat([vision[index.vision], text[index.text]], dim=1)
    return memory, torch.cat([index.vision_mask, index.text_mask], dim=1)


def memory_positions(index: MemoryIndex, d_model: int) -> Float[Tensor, "samples memory model"]:
    """Where each memory entry is: (y, x) in the picture for image tokens, the place in the sample for text.

    Sines of either kind, as DETR's: half of the channels for y and half for x, the picture spanning 2 pi.
    """
    x, y = (2 * torch.pi * index.vision_centers).unbind(-1)
    vision = torch.cat([sine(y, d_model // 2), sine(x, d_model // 2)], dim=-1)
    return torch.cat([vision, sine(index.text_positions.float(), d_model)], dim=1)
