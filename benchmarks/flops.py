"""Useful arithmetic of a training step: what the samples need, forward and backward, everything trainable.

No padding, no recomputation, logits only where they are supervised; 6 operations for a weight and a token: two in the
forward pass and four in the backward. Attention among n tokens of width d costs 12 n^2 d, half of it if causal.
"""

from transformers import Qwen2_5_VLConfig

WINDOW_TOKENS = 64  # patches that a windowed block of the vision tower attends to: 112 x 112 pixels


def language(config: Qwen2_5_VLConfig, num_tokens: int, num_supervised: int) -> float:
    """One conversation through the decoder and, for its supervised tokens, the output matrix."""
    text = config.text_config
    width, key_width = text.hidden_size, text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    layer = 2 * width**2 + 2 * width * key_width + 3 * width * text.intermediate_size
    layers = 6 * num_tokens * layer + 6 * num_tokens**2 * width
    return text.num_hidden_layers * layers + 6 * num_supervised * width * text.vocab_size


def vision(config: Qwen2_5_VLConfig, num_patches: int, is_frozen: bool) -> float:
    """One picture through the vision tower and its merger; of a frozen tower the forward pass alone."""
    tower = config.vision_config
    width, num_full = tower.hidden_size, len(tower.fullatt_block_indexes)
    block = 4 * width**2 + 3 * width * tower.intermediate_size
    attention = num_full * num_patches + (tower.depth - num_full) * WINDOW_TOKENS
    blocks = 6 * num_patches * tower.depth * block + 12 * num_patches * width * attention
    merged_width = width * tower.spatial_merge_size**2
    first = (4 if is_frozen else 6) * merged_width**2  # nothing before it needs a gradient
    merger = num_patches / tower.spatial_merge_size**2 * (first + 6 * merged_width * tower.out_hidden_size)
    return blocks / (3 if is_frozen else 1) + merger


def detr(config: Qwen2_5_VLConfig, head, num_vision: int, num_text: int, num_captions: int, num_words: int) -> float:
    """One sample through the `detr` head of the given config: adapters, decoder, and the captions of its objects.

    `num_vision` and `num_text` are the entries of its memory, `num_words` the caption tokens of `num_captions` objects.
    """
    width, model = config.text_config.hidden_size, head.d_model
    memory = num_vision + num_text
    adapters = memory * (2 * width * width // head.adapter_ratio + width * model)
    reads = memory * 2 * model**2 * (head.num_decoder_layers + head.num_caption_layers)
    queries = head.num_queries * head.num_decoder_layers * (14 * model**2 + 2 * memory * model)
    captions = num_words * head.num_caption_layers * (14 * model**2 + 2 * memory * model)
    words = num_words * (2 * width * model + width * config.text_config.vocab_size)
    return 6 * (adapters + reads + queries + captions + words)
