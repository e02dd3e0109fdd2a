"""What data preparation needs from a model before its weights are loaded: tokenizer, picture format and cost."""

import math
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bbu_train.errors import InputError
from bbu_train.model import cost
from bbu_train.model.shape import configuration
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.types.samples import PictureFormat


@dataclass(frozen=True)
class Preprocessing:
    """`max_positions` is the longest sequence of the language model, in tokens."""

    tokenizer: PreTrainedTokenizerBase
    picture_format: PictureFormat
    max_positions: int
    cost: cost.Cost


def build(
    checkpoint: str | None,
    weights: str,
    shape: dict[str, Any],
    min_pixels: int,
    max_pixels: int,
    teacher_cache_gib: float,
) -> Preprocessing:
    """Return the checkpoint's tokenizer and picture format; with random weights, the tiny tokenizer.

    `min_pixels` and `max_pixels` bound the area of a resized picture. Generated boxes are in pixels of that picture, so
    a model must predict with the limits of its training. If there is a teacher cache, collators put teachers' pictures
    into `batch.teachers`, each on its own, instead of the joint vision batch. Raise InputError for limits that admit no
    picture and for an impossible cache size.
    """
    config = configuration(checkpoint, weights, shape)
    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    if not side**2 <= min_pixels <= max_pixels:
        raise InputError(
            f"model.min_pixels={min_pixels} and model.max_pixels={max_pixels} must satisfy "
            f"{side**2} <= min_pixels <= max_pixels; {side**2} pixels are one image token."
        )
    if not 0 <= teacher_cache_gib < math.inf:
        raise InputError(f"model.teacher_cache_gib is {teacher_cache_gib}; it must be a number, 0 (none) or above.")
    if weights == "random":
        tokenizer = tiny_tokenizer(config.text_config.vocab_size)
    else:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    picture_format = PictureFormat(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        window_size=vision.window_size,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        teachers_apart=teacher_cache_gib > 0,
    )
    return Preprocessing(
        tokenizer, picture_format, config.text_config.max_position_embeddings, cost.from_config(config)
    )
