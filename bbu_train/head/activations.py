"""The bytes that the activations of a head take, derived from what each operation keeps for its backward pass.

A layer norm keeps its input in float32, a linear layer its input (under autocast a copy for each layer), GELU and ReLU
their input or result, attention its queries, keys, values and result. Compiled parts are counted as uncompiled, a few
percent too much.
"""

import numpy as np

from bbu_train.head.caption import COMPILED_SLOTS_MULTIPLE, CaptionDecoder
from bbu_train.head.flops import AnchoredDecoder, Decoder
from bbu_train.head.layers import MASK_CHANNELS
from bbu_train.ops.activations import ActivationBytes, Count, Execution, MicroBatchSizes, vocabulary_bytes

BIASES = 5  # float32 numbers of a pair of query and memory entry: differences and ratios of x and y, and the weight


def detr(head: Decoder, sizes: MicroBatchSizes, vocabulary_size: int, execution: Execution) -> ActivationBytes:
    """Return the bytes of a `Detr`: adapters, memory, queries, boxes and captions."""
    num_queries, d_model = head.query.num_embeddings, head.query.embedding_dim
    entries = sizes.samples * (sizes.memory_image + sizes.memory_text)
    masked = d_model + MASK_CHANNELS * head.layers[0].self_attention.num_heads
    size = execution.num_bytes
    memory = _memory(d_model) + len(head.layers) * _keys_values(d_model, masked, execution)
    layer = _decoder_layer(d_model, d_model, masked, 2, execution)
    # After each layer: the norm's input and result, the hidden layers of the box head, boxes and objectness.
    outputs = 4 * 2 * d_model + size * 4 * d_model + 4 * 3 * 5
    queries = sizes.samples * num_queries * len(head.layers) * (layer + outputs)
    captions = caption_bytes(head.captioner, sizes, entries, d_model, vocabulary_size, execution)
    saved = _adapters(head, sizes, execution) + entries * memory + queries + captions.saved
    return ActivationBytes(saved, captions.transient)


def dino(head: AnchoredDecoder, sizes: MicroBatchSizes, vocabulary_size: int, execution: Execution) -> ActivationBytes:
    """Return the bytes of a `Dino`: split image tokens, proposals, groups of queries, dense predictions, captions."""
    num_queries, d_model, num_layers = head.query.num_embeddings, head.query.embedding_dim, len(head.layers)
    num_heads, size = head.layers[0].self_attention.num_heads, execution.num_bytes
    masked = d_model + MASK_CHANNELS * num_heads
    image = sizes.memory_image * head.split**2
    per_sample = image + sizes.memory_text
    entries = sizes.samples * per_sample
    memory = _memory(d_model) + num_layers * 4 * size * d_model  # keys, their two inputs, and values
    # The slice of image tokens is copied for each layer that reads it: proposals, dense boxes and dense objectness.
    dense = 3 * size * d_model + size * 4 * d_model + 4 * 12
    slots = np.maximum(num_queries, 2 * np.maximum(1, sizes.max_objects))
    rows = sizes.samples * (1 + head.num_denoising_groups) * (slots if head.num_denoising_groups else num_queries)
    layer = _decoder_layer(d_model, masked, d_model, 2, execution) + 4 * 10 * num_heads
    # Encoded boxes, two layers of positions, the norm's input and result, and the hidden layers of the box head.
    layer += size * 4 * d_model + 4 * 2 * d_model + size * 4 * d_model + 4 * 16
    if not (execution.is_on_gpu and size == 2):  # else a kernel computes the bias
        layer = layer + BIASES * 4 * num_heads * per_sample
    captions = caption_bytes(head.captioner, sizes, entries, d_model, vocabulary_size, execution)
    adapters = _adapters(head, sizes, execution)
    saved = adapters + entries * memory + sizes.samples * image * dense + rows * num_layers * layer + captions.saved
    return ActivationBytes(saved, captions.transient)


def caption_bytes(
    captioner: CaptionDecoder,
    sizes: MicroBatchSizes,
    entries: Count,
    d_model: int,
    vocabulary_size: int,
    execution: Execution,
) -> ActivationBytes:
    """Return the bytes of teacher-forced captions. Each sample has as many slots as the one with most objects."""
    size, width = execution.num_bytes, captioner.out_projection.out_features
    num_heads = captioner.layers[0].self_attention.num_heads
    masked = d_model + MASK_CHANNELS * num_heads
    tokens = np.minimum(sizes.caption_tokens, captioner.max_tokens)
    multiple = COMPILED_SLOTS_MULTIPLE if execution.is_compiled else 1
    slots = -(-sizes.max_objects // multiple) * multiple
    layer = _decoder_layer(d_model, d_model, masked, 3, execution)
    keys_values = entries * len(captioner.layers) * _keys_values(d_model, masked, execution)
    rows = sizes.samples * slots * tokens * len(captioner.layers) * layer
    words = sizes.objects * tokens
    hidden = words * (4 * 3 * d_model + size * 2 * d_model + execution.linear_inputs(1) * width + size * width)
    logits = vocabulary_bytes(words, captioner.vocabulary_chunk, vocabulary_size, execution)
    return ActivationBytes(keys_values + rows + hidden + logits.saved, logits.transient)


def generation_bytes(head: Decoder, sizes: MicroBatchSizes, vocabulary_size: int, execution: Execution) -> int:
    """Return the bytes of captions that are decoded for every query: caches of both attentions, and logits."""
    captioner, num_queries, d_model = head.captioner, head.query.num_embeddings, head.query.embedding_dim
    split = head.split**2 if isinstance(head, AnchoredDecoder) else 1
    entries = sizes.samples * (sizes.memory_image * split + sizes.memory_text)
    masked = d_model + MASK_CHANNELS * captioner.layers[0].self_attention.num_heads
    rows = sizes.samples * num_queries
    cache = rows * captioner.max_tokens * 2 * d_model * execution.num_bytes
    memory = entries * 2 * masked * execution.num_bytes
    # The cache is copied when it grows, layer by layer; logits are in the compute dtype.
    return len(captioner.layers) * (cache + memory) + cache + rows * vocabulary_size * execution.num_bytes


def _adapters(head: Decoder, sizes: MicroBatchSizes, execution: Execution) -> Count:
    """Count the norm's input and result, the bottleneck before and after GELU, and the input of the projection."""
    size = execution.num_bytes
    saved = 0
    for adapter, rows in ((head.vision_adapter, sizes.merged), (head.language_adapter, sizes.positions)):
        width, bottleneck = adapter.up.weight.shape
        saved = saved + rows * ((4 + 2 * execution.linear_inputs(1)) * width + 2 * size * bottleneck)
    return saved


def _memory(d_model: int) -> int:
    """Count, for an entry, the input and the result of the norm, and the encoding of its position."""
    return 4 * 3 * d_model


def _keys_values(d_model: int, masked: int, execution: Execution) -> int:
    """Count, for an entry of the memory, the inputs and the results of the projections of a layer."""
    states = 0 if execution.num_bytes == 4 else d_model  # autocast copies them for each layer
    return execution.num_bytes * (d_model + states + 2 * masked)


def _decoder_layer(d_model: int, self_masked: int, cross_masked: int, num_readers: int, execution: Execution) -> int:
    """Count the bytes of a query in a `DecoderLayer`, without the keys and values of the memory.

    `self_masked` and `cross_masked` are the widths of the heads with mask channels. `num_readers` is 3 if queries, keys
    and values of self-attention are projected from the same numbers, else 2.
    """
    size = execution.num_bytes
    inputs = 3 * d_model if size == 2 else (1 if num_readers == 3 else 2) * d_model
    self_attention = inputs + 3 * self_masked + _result(d_model, self_masked)
    cross_attention = d_model + cross_masked + _result(d_model, cross_masked)
    return 3 * 4 * d_model + size * (self_attention + cross_attention + 9 * d_model)


def _result(d_model: int, masked: int) -> int:
    """Count attention's result and, if mask channels are cut off it, the copy without them."""
    return d_model if masked == d_model else masked + d_model
