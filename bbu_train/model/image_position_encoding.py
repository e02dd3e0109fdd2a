"""Positions of image tokens in their picture, for a language model with random weights.

M-RoPE encodes relative positions only, and an answer token's distance to an image token grows as the answer gets
longer. Pretrained layers have learned to derive coordinates from it; for new layers the absolute
row and column are added to the image tokens. Qwen3-VL has learned position embeddings for the same purpose.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bbu_train.errors import InputError
from bbu_train.ops.numbers import is_number
from bbu_train.ops.sine_encoding import sine_encoding

MAX_WAVELENGTH = 64  # longest over shortest wavelength: the shortest is 2 pi image tokens, so the longest is about 400


def check_scale(scale: float, weights: str) -> None:
    """Raise InputError unless `scale` is a number from 0 on, and 0 for pretrained `weights`."""
    if not is_number(scale) or scale < 0:
        raise InputError(f"model.image_position_scale={scale}: expected a number, 0 (none) or above.")
    if scale and weights == "pretrained":
        raise InputError(
            f"model.image_position_scale={scale} with model.weights=pretrained: image tokens would look like "
            "nothing that these weights have learned. Set model.image_position_scale=0."
        )


def image_position_encoding(position_ids: Int[Tensor, "3 tokens"], width: int) -> Float[Tensor, "tokens width"]:
    """Return sine encodings of the row and of the column of each image token, counted from 0 in its picture.

    `position_ids` are the M-RoPE positions of image tokens only. `width` must be a multiple of 4.
    """
    time, *row_and_column = position_ids  # row and column of a picture's first token equal the picture's time
    encodings = [sine_encoding((axis - time).float(), width // 2, MAX_WAVELENGTH) for axis in row_and_column]
    return torch.cat(encodings, dim=-1)
