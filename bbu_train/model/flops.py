"""The backbone's useful arithmetic."""

from transformers import Qwen2_5_VLForConditionalGeneration

from bbu_train.ops.flops import Sizes, attention_flops, matmul_flops


def backbone_flops(model: Qwen2_5_VLForConditionalGeneration, sizes: Sizes) -> int:
    """Operations of pictures through the vision tower and the merger, samples through the decoder, and supervised
    tokens through the output matrix.

    A block or a layer is taken to train as a whole. Sizes are those of the checkpoint, without the zeros that
    `padding` adds.
    """
    vision, sees_gradient = _vision(model.model.visual, sizes)
    language = model.model.language_model
    text = language.config
    width, key_width = text.hidden_size, text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    weights = 2 * width**2 + 2 * width * key_width + 3 * width * text.intermediate_size
    total, reached = vision, sees_gradient or language.embed_tokens.weight.requires_grad
    for layer in language.layers:
        trains = layer.self_attn.q_proj.weight.requires_grad
        reached = reached or trains  # its norm, which trains too, lies before its matrices
        total += matmul_flops(trains, reached) * sizes.tokens * weights
        total += (
            attention_flops(reached) * sizes.token_squares // 2 * width
        )  # causal: a token reads what lies before it
    return (
        total + matmul_flops(model.lm_head.weight.requires_grad, reached) * sizes.supervised * width * text.vocab_size
    )


def _vision(visual, sizes: Sizes) -> tuple[int, bool]:
    """Operations, and whether anything of it trains, so that a gradient has to come back to it."""
    tower = visual.config
    width = tower.hidden_size
    pixels = tower.in_channels * tower.patch_size**2  # of one frame: a still picture repeats it
    reached = visual.patch_embed.proj.weight.requires_grad
    total = matmul_flops(reached, passes=False) * sizes.patches * pixels * width
    weights = 4 * width**2 + 3 * width * tower.intermediate_size
    for i, block in enumerate(visual.blocks):
        trains = block.attn.qkv.weight.requires_grad
        reached = reached or trains
        squares = sizes.picture_squares if i in tower.fullatt_block_indexes else sizes.window_squares
        total += matmul_flops(trains, reached) * sizes.patches * weights + attention_flops(reached) * squares * width
    trains = visual.merger.mlp[0].weight.requires_grad
    reached = reached or trains
    merged = tower.spatial_merge_size**2 * width  # of the patches that become one image token
    total += matmul_flops(trains, reached) * sizes.merged * merged * (merged + tower.out_hidden_size)
    return total, reached
