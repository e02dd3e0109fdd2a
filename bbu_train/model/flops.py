"""Useful floating-point operations of the backbone in a training step, as defined in `bbu_train.ops.flops`."""

from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from bbu_train.ops.flops import Sizes, attention_flops, matmul_flops


def backbone_flops(model: Qwen2_5_VLForConditionalGeneration, sizes: Sizes) -> int:
    """Return the operations for pictures in the vision tower and merger, samples in the decoder, and supervised tokens
    in the output matrix.

    Each block and each layer counts as either trained or frozen as a whole. Widths are those of the checkpoint, without
    the zeros that `padding` adds.
    """
    total, needs_gradient = _vision_flops(model.model.visual, sizes)
    language = model.model.language_model
    text = language.config
    width, key_width = text.hidden_size, text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    weights = 2 * width**2 + 2 * width * key_width + 3 * width * text.intermediate_size
    needs_gradient = needs_gradient or language.embed_tokens.weight.requires_grad
    for layer in language.layers:
        trains = layer.self_attn.q_proj.weight.requires_grad
        needs_gradient = needs_gradient or trains  # the layer's norm also trains, and comes before its matrices
        total += matmul_flops(trains, needs_gradient) * sizes.tokens * weights
        total += attention_flops(needs_gradient) * sizes.token_squares // 2 * width  # half: attention is causal
    logits = sizes.supervised * width * text.vocab_size
    return total + matmul_flops(model.lm_head.weight.requires_grad, needs_gradient) * logits


def _vision_flops(visual: nn.Module, sizes: Sizes) -> tuple[int, bool]:
    """Return the operations, and whether any part trains, so that gradients must flow back into the vision tower."""
    tower = visual.config
    width = tower.hidden_size
    # The pixels of one frame. The stock model repeats a still picture as a second frame, which is not useful work.
    pixels = tower.in_channels * tower.patch_size**2
    needs_gradient = visual.patch_embed.proj.weight.requires_grad
    total = matmul_flops(needs_gradient, needs_input_grad=False) * sizes.patches * pixels * width
    weights = 4 * width**2 + 3 * width * tower.intermediate_size
    for i, block in enumerate(visual.blocks):
        trains = block.attn.qkv.weight.requires_grad
        needs_gradient = needs_gradient or trains
        squares = sizes.picture_squares if i in tower.fullatt_block_indexes else sizes.window_squares
        total += matmul_flops(trains, needs_gradient) * sizes.patches * weights
        total += attention_flops(needs_gradient) * squares * width
    trains = visual.merger.mlp[0].weight.requires_grad
    needs_gradient = needs_gradient or trains
    merged_width = tower.spatial_merge_size**2 * width  # the patches of one image token, concatenated
    total += matmul_flops(trains, needs_gradient) * sizes.merged * merged_width * (merged_width + tower.out_hidden_size)
    return total, needs_gradient
