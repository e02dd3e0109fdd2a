"""Qwen2.5-VL from transformers, with faster parts in place of some stock ones."""

from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from bbu_train.model import attention as attention_kernels
from bbu_train.model.linear_patch_embedding import LinearPatchEmbedding
from bbu_train.model.norms import replace_norms
from bbu_train.ops.compile import compile_block


def load_backbone(config: Qwen2_5_VLConfig, checkpoint: str | None, weights: str) -> Qwen2_5_VLForConditionalGeneration:
    """Return the model in float32, with the checkpoint's weights or random ones. Patches are read as raw bytes."""
    if weights == "random":
        backbone = Qwen2_5_VLForConditionalGeneration(config)
        mean, std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    else:
        backbone = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        mean, std = processor.image_mean, processor.image_std
    visual = backbone.model.visual
    visual.patch_embed = LinearPatchEmbedding(visual.patch_embed.proj, list(mean), list(std))
    return backbone


def install_kernels(
    backbone: Qwen2_5_VLForConditionalGeneration,
    attention: str,
    device: torch.device,
    dtype: torch.dtype,
    is_compiled: bool,
) -> None:
    """Use the attention that `model.attention` names, and with a GPU kernel also the window kernel and fused norms.

    Compiled blocks keep their stock norms, which compilation fuses. Raise InputError if the kernel cannot run here.
    """
    name = attention_kernels.resolve_attention_name(attention, device, dtype)
    # As a plain string, a name that contains "flash" would be looked up as a kernel on the hub.
    backbone.set_attn_implementation({"text_config": name, "vision_config": name})
    if attention_kernels.is_kernel(name):
        # This import needs Triton, which comes only with torch for GPUs.
        from bbu_train.model.window_attention import replace_windows

        replace_windows(backbone.model.visual)
        replace_norms(backbone, excluded=_blocks(backbone) if is_compiled else [])


def compile_blocks(backbone: Qwen2_5_VLForConditionalGeneration) -> None:
    """Compile the blocks of the vision tower and of the language model. Blocks of one kind share one graph."""
    for block in _blocks(backbone):
        compile_block(block)
    for first in (backbone.model.visual.blocks[0], backbone.model.language_model.layers[0]):
        first.register_forward_pre_hook(_clone_input)


def _blocks(backbone: Qwen2_5_VLForConditionalGeneration) -> list[nn.Module]:
    return [*backbone.model.visual.blocks, *backbone.model.language_model.layers]


@torch.compiler.disable
def _clone_input(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Clone the first input of a block.

    torch.compile specialises on views, and the input of a first block is a view, so that block would get its own graph.
    Cloning its input lets all blocks share one.
    """
    hidden, *others = inputs
    return hidden.clone(), *others
