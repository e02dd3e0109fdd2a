"""The useful arithmetic of a DETR-style head."""

from bbu_train.flops import attention, matrix
from bbu_train.types import Sizes


def detr(head, sizes: Sizes, vocabulary_size: int, features_train: bool, words_train: bool) -> int:
    """Operations of samples through the adapters, the queries and the captions of a `Detr`.

    `features_train`: whether anything before the head does. `words_train`: whether the backbone's embedding and output
    matrix do. The adapters are taken to train together, and so is all else of the head: where it does not, its first
    self-attention, which has nothing to pass a gradient to, is counted as if it had.
    """
    trains, adapters_train = head.query.weight.requires_grad, head.vision_adapter.down.weight.requires_grad
    adapted = matrix(adapters_train, features_train or adapters_train)
    passes = features_train or adapters_train or trains
    weight, pair = matrix(trains, passes), attention(passes)
    d_model, width, bottleneck = head.query.embedding_dim, *head.vision_adapter.up.weight.shape
    num_layers, num_caption_layers = len(head.layers), len(head.captioner.layers)
    layer = 14 * d_model**2  # self-attention 4, queries and outputs of cross-attention 2, feed-forward network 8

    # 1. The memory: adapters, and keys and values for every layer that reads it.
    memory = adapted * sizes.memory * (2 * width * bottleneck + width * d_model)
    memory += weight * sizes.memory * (num_layers + num_caption_layers) * 2 * d_model**2

    # 2. The queries: layers, and the heads for boxes (three matrices) and objectness after each of them.
    num_queries = head.query.num_embeddings
    says = 2 * d_model**2 + 5 * d_model
    read = sizes.samples * num_queries + sizes.memory
    queries = num_layers * num_queries * (weight * sizes.samples * (layer + says) + pair * read * d_model)

    # 3. The captions: as many positions as tokens, of which the first is the object's query and is not embedded.
    read = pair * sizes.caption_squares // 2 + pair * sizes.caption_memory
    captions = num_caption_layers * (weight * sizes.caption_tokens * layer + read * d_model)
    embedded = matrix(trains, words_train) * (sizes.caption_tokens - sizes.captions) * width * d_model
    logits = matrix(words_train, passes) * sizes.caption_tokens * width * vocabulary_size
    words = embedded + weight * sizes.caption_tokens * d_model * width + logits

    return memory + queries + captions + words
