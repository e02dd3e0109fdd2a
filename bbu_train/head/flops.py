"""Count the useful arithmetic of the heads: matrix products and attention, without padding (`ops.flops`)."""

from typing import NamedTuple

from torch import nn

from bbu_train.head.adapter import Adapter
from bbu_train.head.caption import CaptionDecoder
from bbu_train.ops.flops import Sizes, attention_flops, matmul_flops


class Decoder(nn.Module):
    """A head, with the attributes that are counted."""

    query: nn.Embedding
    vision_adapter: Adapter
    layers: nn.ModuleList
    captioner: CaptionDecoder


class AnchoredDecoder(Decoder):
    """A head with the further attributes of `Dino`."""

    split: int
    num_denoising_groups: int


class UnitFlops(NamedTuple):
    """FLOPs for each unit of work.

    needs_weight_grad   whether the head, apart from its adapters, trains
    needs_input_grad    whether it or anything before it trains
    per_adapter_weight  FLOPs for each weight and token in the adapters
    per_weight          likewise in the rest of the head
    per_pair            FLOPs for each channel of a (query, key) pair in attention
    """

    needs_weight_grad: bool
    needs_input_grad: bool
    per_adapter_weight: int
    per_weight: int
    per_pair: int


def detr(
    head: Decoder, sizes: Sizes, vocabulary_size: int, features_require_grad: bool, lm_head_requires_grad: bool
) -> int:
    """Count the operations of a `Detr`: adapters, queries and captions.

    `features_require_grad`: whether anything before the head trains. `lm_head_requires_grad`: whether the backbone's
    embedding and output matrix do. The adapters are assumed to train together, and so is the rest of the head. If that
    rest is frozen, its first self-attention has nothing to pass a gradient to, but is counted as if it had.
    """
    unit_flops = _unit_flops(head, features_require_grad)
    num_queries, d_model, num_layers = head.query.num_embeddings, head.query.embedding_dim, len(head.layers)
    weights = _layer_weights(d_model) + _prediction_weights(d_model)
    keys = sizes.samples * num_queries + sizes.memory
    queries = (
        num_layers
        * num_queries
        * (unit_flops.per_weight * sizes.samples * weights + unit_flops.per_pair * keys * d_model)
    )
    memory = _memory(head, sizes, 1, unit_flops)
    return (
        memory
        + queries
        + _captions(head, sizes, sizes.caption_memory, unit_flops, vocabulary_size, lm_head_requires_grad)
    )


def dino(
    head: AnchoredDecoder, sizes: Sizes, vocabulary_size: int, features_require_grad: bool, lm_head_requires_grad: bool
) -> int:
    """Count the operations of a `Dino`, as `detr` does, with proposals, dense predictions, box encodings and denoising.

    `sizes.captions` is the number of objects, each of which is noised.
    """
    unit_flops = _unit_flops(head, features_require_grad)
    num_queries, d_model, num_layers = head.query.num_embeddings, head.query.embedding_dim, len(head.layers)
    num_parts, num_groups = head.split**2, head.num_denoising_groups
    modulation = head.layers[0].modulation.projection.weight.numel()

    # 1. Proposals: objectness of every part of an image token, boxes of the best. Dense: both of every part.
    proposals = unit_flops.per_weight * num_parts * sizes.memory_image * (d_model + _prediction_weights(d_model))
    proposals += unit_flops.per_weight * sizes.samples * num_queries * (_prediction_weights(d_model) - d_model)

    # 2. Queries: the matched ones, and two for each object and denoising group, which attend within their group.
    total_queries = sizes.samples * num_queries + 2 * num_groups * sizes.captions
    query_pos = (
        matmul_flops(unit_flops.needs_weight_grad, needs_input_grad=False) * 4 * d_model**2
        + matmul_flops(unit_flops.needs_weight_grad, unit_flops.needs_weight_grad) * 2 * d_model**2
    )
    weights = _layer_weights(d_model) + modulation + _prediction_weights(d_model)
    queries = total_queries * (unit_flops.per_weight * weights + query_pos)
    pairs = sizes.samples * num_queries**2 + num_groups * 4 * sizes.object_squares
    pairs += num_queries * _count_parts(sizes.memory, sizes.memory_image, num_parts)
    pairs += 2 * num_groups * _count_parts(sizes.object_memory, sizes.object_memory_image, num_parts)
    queries = num_layers * (queries + unit_flops.per_pair * pairs * d_model)

    caption_memory = _count_parts(sizes.caption_memory, sizes.caption_memory_image, num_parts)
    captions = _captions(head, sizes, caption_memory, unit_flops, vocabulary_size, lm_head_requires_grad)
    return _memory(head, sizes, num_parts, unit_flops) + proposals + queries + captions


def _unit_flops(head: Decoder, features_require_grad: bool) -> UnitFlops:
    needs_weight_grad, adapters_train = head.query.weight.requires_grad, head.vision_adapter.down.weight.requires_grad
    needs_input_grad = features_require_grad or adapters_train or needs_weight_grad
    per_adapter_weight = matmul_flops(adapters_train, features_require_grad or adapters_train)
    per_weight = matmul_flops(needs_weight_grad, needs_input_grad)
    return UnitFlops(
        needs_weight_grad, needs_input_grad, per_adapter_weight, per_weight, attention_flops(needs_input_grad)
    )


def _count_parts(total: int, image: int, num_parts: int) -> int:
    """Count memory entries, or pairs with them, if each of the `image` tokens among `total` becomes `num_parts`."""
    return total + (num_parts - 1) * image


def _layer_weights(d_model: int) -> int:
    """Count the weights applied to a query in a layer: self-attention 4, cross-attention 2, feed-forward 8 matrices."""
    return 14 * d_model**2


def _prediction_weights(d_model: int) -> int:
    """Count the weights of the box head (three matrices) and of objectness."""
    return 2 * d_model**2 + 5 * d_model


def _memory(head: Decoder, sizes: Sizes, num_parts: int, unit_flops: UnitFlops) -> int:
    """Count the operations of the adapters, and of keys and values for every layer that attends to the memory."""
    width, bottleneck = head.vision_adapter.up.weight.shape
    d_model, num_layers = head.query.embedding_dim, len(head.layers) + len(head.captioner.layers)
    entries = _count_parts(sizes.memory, sizes.memory_image, num_parts)
    adapters = unit_flops.per_adapter_weight * (sizes.memory * 2 * width * bottleneck + entries * width * d_model)
    return adapters + unit_flops.per_weight * entries * num_layers * 2 * d_model**2


def _captions(
    head: Decoder,
    sizes: Sizes,
    memory_pairs: int,
    unit_flops: UnitFlops,
    vocabulary_size: int,
    lm_head_requires_grad: bool,
) -> int:
    """Count the operations of the caption decoder, for `memory_pairs` pairs of a caption token and a memory entry.

    There are as many positions as caption tokens; the first is the object's query, which needs no embedding.
    """
    width, d_model = head.vision_adapter.up.weight.shape[0], head.query.embedding_dim
    pairs = unit_flops.per_pair * (sizes.caption_squares // 2 + memory_pairs)
    weights = unit_flops.per_weight * sizes.caption_tokens * _layer_weights(d_model)
    layers = len(head.captioner.layers) * (weights + pairs * d_model)
    embedded = (
        matmul_flops(unit_flops.needs_weight_grad, lm_head_requires_grad)
        * (sizes.caption_tokens - sizes.captions)
        * width
        * d_model
    )
    logits = (
        matmul_flops(lm_head_requires_grad, unit_flops.needs_input_grad)
        * sizes.caption_tokens
        * width
        * vocabulary_size
    )
    return layers + embedded + unit_flops.per_weight * sizes.caption_tokens * d_model * width + logits
