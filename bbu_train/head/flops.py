"""The useful arithmetic of the heads."""

from typing import NamedTuple

from bbu_train.ops.flops import Sizes, attention_flops, matmul_flops


class Rates(NamedTuple):
    """What a product costs, in operations for each weight and token, or for each channel of a pair: in the adapters, in
    all else of the head, and in attention. `trains`: whether that else does; `passes`: whether it or
    what lies before it."""

    trains: bool
    passes: bool
    adapted: int
    weight: int
    pair: int


def detr(head, sizes: Sizes, vocabulary_size: int, features_train: bool, words_train: bool) -> int:
    """Operations of samples through the adapters, the queries and the captions of a `Detr`.

    `features_train`: whether anything before the head does. `words_train`: whether the backbone's embedding and output
    matrix do. The adapters are taken to train together, and so is all else of the head: where it does not, its first
    self-attention, which has nothing to pass a gradient to, is counted as if it had.
    """
    rates = _rates(head, features_train)
    num_queries, d_model, num_layers = head.query.num_embeddings, head.query.embedding_dim, len(head.layers)
    per_query = _layer(d_model) + _says(d_model)
    read = sizes.samples * num_queries + sizes.memory
    queries = num_layers * num_queries * (rates.weight * sizes.samples * per_query + rates.pair * read * d_model)
    memory = _memory(head, sizes, 1, rates)
    return memory + queries + _captions(head, sizes, sizes.caption_memory, rates, vocabulary_size, words_train)


def dino(head, sizes: Sizes, vocabulary_size: int, features_train: bool, words_train: bool) -> int:
    """As `detr`, of a `Dino`: with proposals, places of boxes, and the noised boxes of `sizes.captions` objects."""
    rates = _rates(head, features_train)
    num_queries, d_model, num_layers = head.query.num_embeddings, head.query.embedding_dim, len(head.layers)
    num_parts, groups = head.split**2, head.num_denoising_groups
    gaze = head.layers[0].gaze.say.weight.numel()

    # 1. The proposals: objectness of every part of an image token, boxes of the best; both of every one by itself.
    proposals = rates.weight * num_parts * sizes.memory_image * (d_model + _says(d_model))
    proposals += rates.weight * sizes.samples * num_queries * (_says(d_model) - d_model)

    # 2. The queries: those that are matched, and two for each object and group, which read those of their group.
    num_read = sizes.samples * num_queries + 2 * groups * sizes.captions
    place = (
        matmul_flops(rates.trains, passes=False) * 4 * d_model**2
        + matmul_flops(rates.trains, rates.trains) * 2 * d_model**2
    )
    queries = num_read * (rates.weight * (_layer(d_model) + gaze + _says(d_model)) + place)
    pairs = sizes.samples * num_queries**2 + groups * 4 * sizes.object_squares
    pairs += num_queries * _split(sizes.memory, sizes.memory_image, num_parts)
    pairs += 2 * groups * _split(sizes.object_memory, sizes.object_memory_image, num_parts)
    queries = num_layers * (queries + rates.pair * pairs * d_model)

    read = _split(sizes.caption_memory, sizes.caption_memory_image, num_parts)
    captions = _captions(head, sizes, read, rates, vocabulary_size, words_train)
    return _memory(head, sizes, num_parts, rates) + proposals + queries + captions


def _rates(head, features_train: bool) -> Rates:
    trains, adapters_train = head.query.weight.requires_grad, head.vision_adapter.down.weight.requires_grad
    passes = features_train or adapters_train or trains
    adapted = matmul_flops(adapters_train, features_train or adapters_train)
    return Rates(trains, passes, adapted, matmul_flops(trains, passes), attention_flops(passes))


def _split(num_all: int, num_seen: int, num_parts: int) -> int:
    """Entries of memories, or pairs with them, when each image token is so many parts."""
    return num_all + (num_parts - 1) * num_seen


def _layer(d_model: int) -> int:
    """Weights that a query meets in a layer: self-attention 4, its side of cross-attention 2, feed-forward 8."""
    return 14 * d_model**2


def _says(d_model: int) -> int:
    """Weights of the box (three matrices) and of the objectness."""
    return 2 * d_model**2 + 5 * d_model


def _memory(head, sizes: Sizes, num_parts: int, rates: Rates) -> int:
    """Adapters, and keys and values for every layer that reads the memory."""
    width, bottleneck = head.vision_adapter.up.weight.shape
    d_model, num_readers = head.query.embedding_dim, len(head.layers) + len(head.captioner.layers)
    entries = _split(sizes.memory, sizes.memory_image, num_parts)
    adapted = rates.adapted * (sizes.memory * 2 * width * bottleneck + entries * width * d_model)
    return adapted + rates.weight * entries * num_readers * 2 * d_model**2


def _captions(head, sizes: Sizes, read: int, rates: Rates, vocabulary_size: int, words_train: bool) -> int:
    """As many positions as tokens, of which the first is the object's query and is not embedded; `read` are pairs with
    an entry of the memory."""
    width, d_model = head.vision_adapter.up.weight.shape[0], head.query.embedding_dim
    pairs = rates.pair * (sizes.caption_squares // 2 + read)
    layers = len(head.captioner.layers) * (rates.weight * sizes.caption_tokens * _layer(d_model) + pairs * d_model)
    embedded = matmul_flops(rates.trains, words_train) * (sizes.caption_tokens - sizes.captions) * width * d_model
    logits = matmul_flops(words_train, rates.passes) * sizes.caption_tokens * width * vocabulary_size
    return layers + embedded + rates.weight * sizes.caption_tokens * d_model * width + logits
