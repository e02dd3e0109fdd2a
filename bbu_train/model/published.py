"""A model as a folder of the published layout, which stock transformers and its servers load."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.types.samples import PictureFormat

MAX_SHARD_SIZE = "5GB"
"""The published checkpoints have shards of this size."""
PARTS = {r"model\.visual\.merger\.": "merger", r"model\.visual\.": "vision", "": "llm"}
"""The group of `conf/optimizer` that a weight belongs to, by the beginning of its name; the first one that matches."""


def part_of(name: str) -> str:
    """Return the part of the model that the weight of a stock name belongs to: vision, merger or llm."""
    return next(part for pattern, part in PARTS.items() if re.match(pattern, name))


def empty_model(config: Qwen2_5_VLConfig) -> Qwen2_5_VLForConditionalGeneration:
    """Return the stock model without memory for its weights."""
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


def write_model(folder: Path, config: Qwen2_5_VLConfig, weights: Mapping[str, Tensor], pad: int, end: int) -> None:
    """Write weights of one dtype by their stock names, config.json and generation_config.json, as transformers does.

    A tied weight is there once. `pad` and `end` are the ids of the tokens that fill a batch and that end an answer.
    Answers are decoded as in validation: the most probable token, without the published penalty for repeated ones.
    """
    model = empty_model(config)
    model.load_state_dict(dict(weights), strict=False, assign=True)
    model.tie_weights()
    for each in (config.text_config, config.vision_config):
        each.dtype = model.dtype
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end], pad_token_id=pad)
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE, save_original_format=True)


def write_preprocessing(
    folder: Path,
    checkpoint: str | None,
    weights: str,
    tokenizer: PreTrainedTokenizerBase,
    picture_format: PictureFormat,
) -> None:
    """Write the tokenizer with its chat template, and the image processor with the pixel limits of the run."""
    processor = Qwen2VLImageProcessorPil() if weights == "random" else AutoImageProcessor.from_pretrained(checkpoint)
    processor.size = {"shortest_edge": picture_format.min_pixels, "longest_edge": picture_format.max_pixels}
    processor.patch_size, processor.merge_size = picture_format.patch_size, picture_format.merge_size
    processor.save_pretrained(folder)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception:  # what the tokenizer's Rust code raises if it cannot write its file
            raise OSError(f"tokenizer.json: {error}") from error
        raise
