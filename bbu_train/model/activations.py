"""The bytes that Qwen2.5-VL's activations take, derived from what each operation keeps for its backward pass.

A linear layer keeps its input (for the gradient of its weight), a product of two activations keeps both, SiLU and GELU
keep their input, attention keeps queries, keys, values, its result and a float32 number for each head, and a sum keeps
nothing. A stock RMS norm keeps its input in float32, the normalised input, and the product's result through the linear
layers that read it.

A block keeps, for each token (d: width, q and k: widths of queries and of keys, f: width of the MLP):

    without checkpointing   both norms; q + 2k into attention, q out of it; q into the output projection; 4f in the MLP
                            (results of gate, SiLU and up, and their product)
    selective               its input d, the results of all products (q + 2k, d, 2f, d) and of attention (q)
    full                    its input d

Compiled, torch's partitioner recomputes what it can fuse into a kernel (norms, rotations, SiLU) and keeps the inputs
and results of products and attention, which it may not recompute: without checkpointing 4d, q + 2k, q and 3f. In the
vision tower the values are a slice of a product's result, so this is kept beside the rotated queries and keys. With
selective checkpointing the last product's result is not kept, since nothing in the block reads it. With full
checkpointing an H200 kept a second tensor of d for each token of the language model's layers; it is counted, not
explained.

Against an H200 (3B, bfloat16, flash-attention 2, micro-batches of 3,400 to 15,300 tokens), what was kept differed by at
most 2.3% from these formulas, and the peak by at most 4.4%, eager and compiled, at every checkpointing.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import nn

from bbu_train.ops.activations import ActivationBytes, Execution, MicroBatchSizes, vocabulary_bytes

FLASH_ATTENTION_4_PADDING = 1.2  # 80 channels of a vision head are padded to 96 (model/attention.py)


class Block(NamedTuple):
    """The widths of a block, and what its attention is."""

    width: int
    query_width: int
    key_width: int
    mlp_width: int
    num_heads: int
    is_window: bool
    padding: float


class BlockBytes(NamedTuple):
    """Bytes of a block for each of its tokens: kept until the backward pass, and beside that while it runs."""

    saved: int
    transient: int
    forward: int


def block_bytes(block: Block, execution: Execution) -> BlockBytes:
    """Return the bytes for each token of `block`, as this module's docstring derives them."""
    size = execution.num_bytes
    everything = _kept_without_checkpointing(block, execution)
    qkv = block.query_width + 2 * block.key_width
    results = block.width + qkv + block.query_width + block.width + 2 * block.mlp_width
    if not execution.is_compiled:
        results += block.width
    # Of the product, or of gate and of up when the product itself has been freed; compiled, all three.
    gradients = size * (3 if execution.is_compiled else 2) * block.mlp_width
    saved = {
        "none": everything,
        "selective": size * results + 4 * block.num_heads,
        "full": size * block.width * (2 if execution.is_compiled and block.key_width < block.query_width else 1),
    }[execution.gradient_checkpointing]
    return BlockBytes(saved, max(0, everything - saved) + gradients, everything)


def _kept_without_checkpointing(block: Block, execution: Execution) -> int:
    size, width, mlp = execution.num_bytes, block.width, block.mlp_width
    qkv = block.query_width + 2 * block.key_width
    if execution.is_compiled:
        is_slice = block.key_width == block.query_width and not block.is_window
        rotated = 2 * block.query_width if is_slice else 0
        kept = 4 * width + qkv + rotated + block.query_width + 3 * mlp
        return int(size * kept + 4 * block.num_heads)
    norms = _norm(width, 1, execution) + _norm(width, 2, execution)
    if not execution.has_kernels:
        attention = qkv + 2 * block.query_width  # the result is put in order before the output projection
    elif block.is_window:
        attention = qkv + block.query_width
    elif block.key_width == block.query_width:  # the vision tower: the values are a part of one product's result
        attention = (qkv + 2 * block.query_width) * block.padding + block.query_width * (1 + block.padding)
    else:
        groups = block.query_width // block.key_width if execution.attention == "varlen" else 1
        attention = block.query_width + 2 * groups * block.key_width + block.query_width
    return int(norms + size * (attention + 4 * mlp) + 4 * block.num_heads)


def _norm(width: int, num_readers: int, execution: Execution) -> int:
    """Return the bytes that a norm and the `num_readers` linear layers after it keep for each token."""
    if execution.num_bytes == 4:
        return (2 + min(1, num_readers)) * 4 * width
    rounded = 0 if execution.has_kernels else 2
    return (4 + rounded + execution.linear_inputs(num_readers)) * width


def language_block(backbone: nn.Module) -> Block:
    attention, mlp = (getattr(backbone.model.language_model.layers[0], name) for name in ("self_attn", "mlp"))
    widths = attention.q_proj.in_features, attention.q_proj.out_features, attention.k_proj.out_features
    return Block(*widths, mlp.gate_proj.out_features, attention.q_proj.out_features // attention.head_dim, False, 1)


def vision_block(backbone: nn.Module, is_window: bool, execution: Execution) -> Block:
    visual = backbone.model.visual
    width, mlp_width = visual.config.hidden_size, visual.blocks[0].mlp.gate_proj.out_features
    padding = FLASH_ATTENTION_4_PADDING if execution.attention == "flash_attention_4" else 1
    is_window = is_window and execution.has_kernels
    return Block(width, width, width, mlp_width, visual.config.num_heads, is_window, padding)


def vision_bytes(backbone: nn.Module, sizes: MicroBatchSizes, execution: Execution) -> ActivationBytes:
    """Return the bytes of the vision tower's blocks and its patch embedding, and of the merger."""
    execution = execution.of_vision
    visual, size = backbone.model.visual, execution.num_bytes
    trains = any(p.requires_grad for name, p in visual.named_parameters() if not name.startswith("merger."))
    num_full = len(visual.config.fullatt_block_indexes)
    full, window = (block_bytes(vision_block(backbone, is_window, execution), execution) for is_window in (False, True))
    pixels = visual.patch_embed.proj.weight.shape[1:].numel() // visual.config.temporal_patch_size
    rotation = 2 * 4 * visual.config.hidden_size // visual.config.num_heads
    per_patch = num_full * full.saved + (len(visual.blocks) - num_full) * window.saved + size * pixels + rotation
    transient = max(full.transient, window.transient, 3 * 4 * pixels)
    if not trains:
        per_patch, transient = 0, max(full.forward, window.forward)
    merger = _merger_bytes(backbone, sizes, execution) if _merger_has_gradients(backbone) or trains else 0
    return ActivationBytes(sizes.patches * per_patch + merger, (sizes.patches + sizes.other_patches) * transient)


def _merger_has_gradients(backbone: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in backbone.model.visual.merger.parameters())


def _merger_bytes(backbone: nn.Module, sizes: MicroBatchSizes, execution: Execution) -> int:
    """Count the norm of each patch, GELU's input and result, and the image tokens in order."""
    config, size = backbone.model.visual.config, execution.num_bytes
    per_patch = _norm(config.hidden_size, 1, execution) + 2 * size * config.hidden_size
    patches = sizes.merged * config.spatial_merge_size**2
    return patches * per_patch + sizes.merged * size * config.out_hidden_size


def language_bytes(backbone: nn.Module, sizes: MicroBatchSizes, execution: Execution) -> ActivationBytes:
    """Return the bytes of the language model's layers and of its last norm."""
    execution = execution.of_language
    if not any(p.requires_grad for p in backbone.parameters()):
        return ActivationBytes(0, sizes.positions * block_bytes(language_block(backbone), execution).forward)
    layers, block = len(backbone.model.language_model.layers), language_block(backbone)
    per_token = block_bytes(block, execution)
    # The joined matrix of queries, keys and values (fused_qkv.py) is made anew in each layer, and kept like its input.
    joined = execution.num_bytes * (block.query_width + 2 * block.key_width) * block.width
    rotation = 2 * execution.num_bytes * block.query_width // block.num_heads
    last_norm = _norm(block.width, 0, execution)
    saved = sizes.positions * (layers * per_token.saved + rotation + last_norm)
    if execution.gradient_checkpointing == "none":
        saved = saved + layers * joined
    transient = sizes.positions * per_token.transient + joined
    if execution.precision == "fp32" and execution.is_on_gpu:
        # For grouped queries in float32, sdpa has only its plain path, which keeps the weights of all pairs.
        pairs = sizes.token_squares * block.num_heads * 4
        saved = saved + (0 if execution.gradient_checkpointing == "full" else layers * pairs)
        transient = transient + 3 * pairs
    return ActivationBytes(saved, transient)


def logit_bytes(backbone: nn.Module, sizes: MicroBatchSizes, chunk: int, execution: Execution) -> ActivationBytes:
    """Return the bytes of the language loss: hidden states of supervised tokens, logits, and the matrix's gradient."""
    weight = backbone.lm_head.weight
    logits = vocabulary_bytes(sizes.supervised, chunk, weight.shape[0], execution)
    hidden = sizes.supervised * weight.shape[1] * execution.linear_inputs(1)
    # A chunk's gradient of the matrix comes beside the sum of those before it.
    gradients = 2 * weight.nbytes if weight.requires_grad else 0
    return ActivationBytes(logits.saved + hidden, logits.transient + gradients)


def forward_bytes(backbone: nn.Module, sizes: MicroBatchSizes, chunk: int, execution: Execution) -> int:
    """Return the most bytes of a forward pass without gradients."""
    execution = replace(execution, gradient_checkpointing="none")
    vision = sizes.patches * block_bytes(vision_block(backbone, False, execution), execution).forward
    language = sizes.positions * block_bytes(language_block(backbone), execution).forward
    features = sizes.merged * execution.num_bytes * backbone.config.text_config.hidden_size
    logits = vocabulary_bytes(sizes.supervised, chunk, backbone.lm_head.weight.shape[0], execution)
    return np.maximum(vision, features + np.maximum(language, logits.saved + logits.transient))
