"""Decode a caption from an object query.

A slot holds one caption of a sample: in generation one for each query, in training one for each object, padded.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bbu_train.head.layers import DecoderLayer, KeysValues, rank_in_sample
from bbu_train.head.memory import Memory
from bbu_train.ops.chunked_cross_entropy import chunked_cross_entropy, cross_entropy
from bbu_train.ops.compile import compile_dynamic
from bbu_train.ops.sine_encoding import sine_encoding

COMPILED_SLOTS_MULTIPLE = 8
"""Slots are padded to a multiple of this when compiled: torch recompiles for a size of 1 and for strides not divisible
by 8."""


class CaptionLayer(DecoderLayer):
    """One pre-norm decoder layer: causal self-attention, cross-attention to the memory, feed-forward network."""

    def forward(
        self,
        states: Float[Tensor, "samples slots tokens model"],
        past: KeysValues | None,
        memory: KeysValues,
    ) -> tuple[Float[Tensor, "samples slots tokens model"], KeysValues]:
        """Return the new states, and the keys and values of self-attention with those of `past` before them.

        With a `past` there must be one new token, which may attend to everything before it.
        """
        num_samples, num_slots, num_tokens, _ = states.shape
        normalised = self.norms[0](states).flatten(0, 1)
        keys_values = self.self_attention.keys_values(normalised, normalised)
        if past is not None:
            keys_values = tuple(torch.cat(pair, dim=2) for pair in zip(past, keys_values, strict=True))
        attended = self.self_attention(normalised, keys_values, is_causal=past is None)
        states = states + attended.unflatten(0, (num_samples, num_slots))
        # All captions of a sample attend to the same memory, so they form one sequence of queries.
        attended = self.cross_attention(self.norms[1](states).flatten(1, 2), memory)
        states = states + attended.unflatten(1, (num_slots, num_tokens))
        return states + self.feed_forward(self.norms[2](states)), keys_values


class CaptionDecoder(nn.Module):
    """p(w_t | w_<t, query, memory): teacher-forced in training, greedy with a key-value cache in prediction.

    The input (query, w_1, ..., w_n-1) predicts (w_1, ..., w_n): the query replaces a start token. Words are embedded
    and projected to logits by the backbone's own matrices, with a projection from its width to `d_model` and one
    back, so there is no second vocabulary. Captions have at most `max_tokens` tokens, end token included: of a longer
    one the beginning is learned and generated.
    """

    def __init__(
        self, width: int, d_model: int, num_layers: int, num_heads: int, vocabulary_chunk: int, max_tokens: int
    ) -> None:
        super().__init__()
        self.embed_projection = nn.Linear(width, d_model)
        self.out_projection = nn.Linear(d_model, width)
        self.layers = nn.ModuleList(CaptionLayer(d_model, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.vocabulary_chunk = vocabulary_chunk
        self.max_tokens = max_tokens
        self.cross_entropy = cross_entropy
        self.slots_multiple = 1

    def caption_functions(
        self,
        queries: Float[Tensor, "samples queries model"],
        memory: Memory,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> tuple[Callable[[Tensor, Tensor, Tensor, int], Tensor], Callable[[int], Tensor]]:
        """Return `caption_losses` and `generate_captions` of `Detections` for the final states of the queries."""

        def caption_losses(
            sample_of_object: Tensor, query_of_object: Tensor, caption_ids: Tensor, max_objects: int
        ) -> Tensor:
            matched = queries[sample_of_object, query_of_object]
            return self.losses(matched, sample_of_object, max_objects, caption_ids, memory, embed, project)

        def generate_captions(end_token: int) -> Tensor:
            return self.generate(queries, memory, embed, project, end_token)

        return caption_losses, generate_captions

    def compile_parts(self) -> None:
        """Compile what training runs. `generate` stays eager, because its cache grows with each token."""
        self.teacher_forced = compile_dynamic(self.teacher_forced)
        self.slots_multiple = COMPILED_SLOTS_MULTIPLE
        self.cross_entropy = compile_dynamic(cross_entropy)

    def losses(
        self,
        queries: Float[Tensor, "objects model"],
        samples: Int[Tensor, "objects"],
        num_slots: int,
        caption_ids: Int[Tensor, "objects tokens"],
        memory: Memory,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "objects _"]:
        """Return the cross entropy of the first `max_tokens` tokens of each caption, 0 where `caption_ids` is -100.

        `samples` is the sample of each object, in ascending order; no sample has more than `num_slots` objects.
        """
        caption_ids = caption_ids[:, : self.max_tokens]
        words = embed(caption_ids[:, :-1].clamp(min=0))
        num_slots = math.ceil(num_slots / self.slots_multiple) * self.slots_multiple
        hidden = self.teacher_forced(queries, samples, num_slots, words, memory).flatten(0, 1)
        labels = caption_ids.flatten()
        losses = chunked_cross_entropy(hidden, labels, project, self.vocabulary_chunk, self.cross_entropy)
        return losses.view(caption_ids.shape)

    def teacher_forced(
        self,
        queries: Float[Tensor, "objects model"],
        samples: Int[Tensor, "objects"],
        num_slots: int,
        words: Float[Tensor, "objects words width"],
        memory: Memory,
    ) -> Float[Tensor, "objects tokens width"]:
        """Return the hidden states, in the backbone's width, after each object's query and each of its words."""
        sequences = torch.cat([queries[:, None], self.embed_projection(words).to(queries.dtype)], dim=1)
        num_samples = len(memory.states)
        slot = (samples, rank_in_sample(samples, num_samples))
        rows = sequences.new_zeros(num_samples, num_slots, *sequences.shape[1:]).index_put(slot, sequences)
        states, _ = self._decode(rows, 0, None, self._memory_keys_values(memory))
        return self.out_projection(self.norm(states[slot]))

    @torch.no_grad()
    def generate(
        self,
        queries: Float[Tensor, "samples slots model"],
        memory: Memory,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        end_token: int,
    ) -> Int[Tensor, "samples slots tokens"]:
        """Decode greedily until every caption has ended or has `max_tokens` tokens; pad with `end_token`.

        A sample whose captions have all ended is no longer decoded.
        """
        memory_keys_values, past = self._memory_keys_values(memory), None
        ids = torch.full((*queries.shape[:2], self.max_tokens), end_token, device=queries.device)
        samples = torch.arange(len(queries), device=queries.device)  # those that are still decoded
        states, has_ended, num_tokens = queries[:, :, None], torch.zeros_like(ids[..., 0], dtype=torch.bool), 0
        while len(samples) and num_tokens < self.max_tokens:
            decoded, past = self._decode(states, num_tokens, past, memory_keys_values)
            logits = project(self.out_projection(self.norm(decoded[:, :, -1])))
            words = logits.argmax(-1).masked_fill(has_ended, end_token)
            ids[samples, :, num_tokens] = words
            num_tokens += 1
            has_ended = has_ended | (words == end_token)
            is_open = ~has_ended.all(dim=1)
            if not is_open.all():
                samples, words, has_ended = samples[is_open], words[is_open], has_ended[is_open]
                past = [_select_samples(pair, is_open, queries.shape[1]) for pair in past]
                memory_keys_values = [_select_samples(pair, is_open, 1) for pair in memory_keys_values]
            states = self.embed_projection(embed(words))[:, :, None].to(queries.dtype)
        return ids[..., :num_tokens]

    def _memory_keys_values(self, memory: Memory) -> list[KeysValues]:
        return [layer.cross_attention.keys_values(memory.keys, memory.states, memory.mask) for layer in self.layers]

    def _decode(
        self,
        states: Float[Tensor, "samples slots tokens model"],
        first_position: int,
        past: list[KeysValues] | None,
        memory: list[KeysValues],
    ) -> tuple[Float[Tensor, "samples slots tokens model"], list[KeysValues]]:
        """Return the states after the last layer, and the self-attention cache of each layer.

        `past` is emptied, so that a layer's old cache is freed as soon as its new one exists.
        """
        positions = torch.arange(first_position, first_position + states.shape[2], device=states.device)
        states, cache = states + sine_encoding(positions.float(), states.shape[-1]), []
        for i, layer in enumerate(self.layers):
            states, keys_values = layer(states, past.pop(0) if past else None, memory[i])
            cache.append(keys_values)
        return states, cache


def _select_samples(keys_values: KeysValues, is_selected: Bool[Tensor, "samples"], num_slots: int) -> KeysValues:
    """Return the keys and values of the selected samples. Each sample has `num_slots` rows."""
    rows = is_selected.repeat_interleave(num_slots)
    return tuple(part[rows] for part in keys_values)
