"""Qwen2.5-VL from transformers, with faster parts in place of some stock ones."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoImageProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from bbu_train.model import attention as attention_kernels
from bbu_train.model.linear_patch_embedding import LinearPatchEmbedding
from bbu_train.model.norms import replace_norms
from bbu_train.ops.compile import compile_block

NUM_READERS = 4  # tensors that are read at once: a mapped file is read where its pages are first used


def load_backbone(
    config: Qwen2_5_VLConfig, checkpoint: str | None, weights: str, device: torch.device, dtype: torch.dtype
) -> Qwen2_5_VLForConditionalGeneration:
    """Return the model on `device`, with the checkpoint's weights or random ones. Patches are read as raw bytes.

    Matrices have `dtype`, and norms and biases stay float32.
    """
    if weights == "random":
        with device:
            backbone = Qwen2_5_VLForConditionalGeneration(config)
        mean, std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    else:
        backbone = load_checkpoint(checkpoint)
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        mean, std = processor.image_mean, processor.image_std

    def place(parameter: nn.Parameter) -> None:
        parameter.data = parameter.data.to(device).to(dtype if parameter.ndim >= 2 else torch.float32)

    with ThreadPoolExecutor(NUM_READERS) as readers:
        list(readers.map(place, backbone.parameters()))
    visual = backbone.model.visual
    visual.patch_embed = LinearPatchEmbedding(visual.patch_embed.proj, list(mean), list(std))
    return backbone


def load_checkpoint(checkpoint: str) -> Qwen2_5_VLForConditionalGeneration:
    """Return the model on the host, as bfloat16 if the whole checkpoint is, else as float32.

    In the dtype of the checkpoint nothing is copied: the tensors are the mapped pages of its files.
    """
    dtype = torch.bfloat16 if _stored_dtypes(checkpoint) == {"BF16"} else torch.float32
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)


def _stored_dtypes(checkpoint: str) -> set[str]:
    """Return the names of the dtypes in the checkpoint's safetensors files; none if it has other files."""
    find = partial(cached_file, checkpoint, _raise_exceptions_for_missing_entries=False)
    files = [find(SAFE_WEIGHTS_NAME)]
    if (index := find(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        files, _ = get_checkpoint_shard_files(checkpoint, index)
    dtypes: set[str] = set()
    for path in filter(None, files):
        with safe_open(path, framework="pt") as file:
            dtypes |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (file is no dict)
    return dtypes


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
