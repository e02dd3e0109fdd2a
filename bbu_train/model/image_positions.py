"""Where in its picture an image token lies, for a language model from random weights.

M-RoPE tells how far apart two tokens are, and text, in which a coordinate is to be written, moves on with every token.
Pretrained layers have learned to make coordinates of that; to new ones it is told. Qwen3-VL has learned places.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bbu_train.errors import InputError
from bbu_train.ops.numbers import is_number
from bbu_train.ops.sine_encoding import sine_encoding

LONGEST = 64  # times the shortest wavelength of 2 pi image tokens: about 400 of them, 11,000 pixels


def check(amplitude: float, weights: str) -> None:
    """Raise InputError unless weights of that kind, "random" or "pretrained", can learn with `amplitude`."""
    if not is_number(amplitude) or amplitude < 0:
        raise InputError(f"model.image_position_scale={amplitude}: expected a number, 0 (none) or above.")
    if amplitude and weights == "pretrained":
        raise InputError(
            f"model.image_position_scale={amplitude} with model.weights=pretrained: image tokens would look like "
            "nothing that these weights have learned. Set model.image_position_scale=0."
        )


def sines(position_ids: Int[Tensor, "3 tokens"], width: int) -> Float[Tensor, "tokens width"]:
    """Of the row of each image token, and then of its column, both counted from 0 in its picture. `position_ids` are
    M-RoPE's, of image tokens alone.

    `width` must be a multiple of 4, which that of every Qwen2.5-VL is.
    """
    start, *row_and_column = position_ids  # a picture's first token has its time as its row and column
    return torch.cat([sine_encoding((where - start).float(), width // 2, LONGEST) for where in row_and_column], dim=-1)
