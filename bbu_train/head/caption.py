"""Describes an object query in words."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bbu_train.head.adapter import Memory
from bbu_train.head.layers import DecoderLayer, KeysValues, rank_in_sample
from bbu_train.ops.chunked_cross_entropy import chunked_cross_entropy, cross_entropy
from bbu_train.ops.compile import compile_dynamic
from bbu_train.ops.sine_encoding import sine_encoding

COMPILED_SLOTS = 8
"""Slots come in as many where they are compiled: for one, and for strides that 8 does not divide, code is made anew."""


class CaptionLayer(DecoderLayer):
    """One pre-norm decoder layer: the caption so far, then the sample's memory, then a feed-forward network."""

    def forward(
        self,
        states: Float[Tensor, "samples slots tokens model"],
        past: KeysValues | None,
        memory: KeysValues,
    ) -> tuple[Float[Tensor, "samples slots tokens model"], KeysValues]:
        num_samples, num_slots, num_tokens, _ = states.shape
        normalised = self.norms[0](states).flatten(0, 1)
        keys_values = self.self_attention.keys_values(normalised, normalised)
        if past is not None:
            keys_values = tuple(torch.cat(pair, dim=2) for pair in zip(past, keys_values, strict=True))
        # With a cache there is one new token, which may read all that went before.
        own = self.self_attention(normalised, keys_values, is_causal=past is None)
        states = states + own.unflatten(0, (num_samples, num_slots))
        # All captions of a sample read one memory, so they are one sequence of queries to it.
        read = self.cross_attention(self.norms[1](states).flatten(1, 2), memory)
        states = states + read.unflatten(1, (num_slots, num_tokens))
        return states + self.feed_forward(self.norms[2](states)), keys_values


class CaptionDecoder(nn.Module):
    """p(w_t | w_<t, query, memory), teacher-forced in training and greedy, with a cache, in prediction.

    The sequence is (query, w_1, ..., w_n-1) and predicts (w_1, ..., w_n): the query takes the place of a start
    token. Words are embedded and projected by the backbone's own matrices, through a projection to its width and
    one from it, so there is no second vocabulary. Slots are queries or objects of one sample.
    """

    def __init__(self, width: int, d_model: int, num_layers: int, num_heads: int, vocabulary_chunk: int):
        super().__init__()
        self.embed_projection = nn.Linear(width, d_model)
        self.out_projection = nn.Linear(d_model, width)
        self.layers = nn.ModuleList(CaptionLayer(d_model, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.vocabulary_chunk = vocabulary_chunk
        self.cross_entropy = cross_entropy
        self.slots_multiple = 1

    def speaker(
        self,
        queries: Float[Tensor, "samples queries model"],
        memory: Memory,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> tuple[Callable[[Tensor, Tensor, Tensor, int], Tensor], Callable[[int, int], Tensor]]:
        """`caption_losses` and `describe` of `Detections`, for queries that have these states."""

        def caption_losses(samples: Tensor, chosen: Tensor, caption_ids: Tensor, num_slots: int) -> Tensor:
            matched = queries[samples, chosen]
            return self.losses(matched, samples, num_slots, caption_ids, memory, embed, project)

        def describe(end_token: int, max_tokens: int) -> Tensor:
            return self.describe(queries, memory, embed, project, end_token, max_tokens)

        return caption_losses, describe

    def compile_parts(self) -> None:
        """Fuse what training runs. Describing, whose cache grows with each token, stays as it is."""
        self.teacher_forced = compile_dynamic(self.teacher_forced)
        self.slots_multiple = COMPILED_SLOTS
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
    ) -> Float[Tensor, "objects tokens"]:
        """Cross entropy of each caption token, 0 where `caption_ids` is -100.

        `samples` says whose memory each caption reads, in ascending order; no sample has more than `num_slots`.
        """
        words = embed(caption_ids[:, :-1].clamp(min=0))
        num_slots = math.ceil(num_slots / self.slots_multiple) * self.slots_multiple
        out = self.teacher_forced(queries, samples, num_slots, words, memory).flatten(0, 1)
        targets = caption_ids.flatten()
        losses = chunked_cross_entropy(out, targets, project, self.vocabulary_chunk, self.cross_entropy)
        return losses.view(caption_ids.shape)

    def teacher_forced(
        self,
        queries: Float[Tensor, "objects model"],
        samples: Int[Tensor, "objects"],
        num_slots: int,
        words: Float[Tensor, "objects words width"],
        memory: Memory,
    ) -> Float[Tensor, "objects tokens width"]:
        """What the output matrix reads: of each object's query and then of its words."""
        sequences = torch.cat([queries[:, None], self.embed_projection(words).to(queries.dtype)], dim=1)
        num_samples = len(memory.states)
        place = (samples, rank_in_sample(samples, num_samples))
        slots = sequences.new_zeros(num_samples, num_slots, *sequences.shape[1:]).index_put(place, sequences)
        states, _ = self._decode(slots, 0, None, self._read(memory))
        return self.out_projection(self.norm(states[place]))

    @torch.no_grad()
    def describe(
        self,
        queries: Float[Tensor, "samples slots model"],
        memory: Memory,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        end_token: int,
        max_tokens: int,
    ) -> Int[Tensor, "samples slots tokens"]:
        """The likeliest next token, again and again, until every caption has ended or has `max_tokens` tokens."""
        read, past, ids = self._read(memory), None, []
        states = queries[:, :, None]
        ended = torch.zeros(queries.shape[:2], dtype=torch.bool, device=queries.device)
        for position in range(max_tokens):
            decoded, past = self._decode(states, position, past, read)
            scores = project(self.out_projection(self.norm(decoded[:, :, -1])))
            ids.append(scores.argmax(-1).masked_fill(ended, end_token))
            ended = ended | (ids[-1] == end_token)
            if ended.all():
                break
            states = self.embed_projection(embed(ids[-1]))[:, :, None].to(queries.dtype)
        return torch.stack(ids, dim=-1)

    def _read(self, memory: Memory) -> list[KeysValues]:
        return [layer.cross_attention.keys_values(memory.keys, memory.states, memory.mask) for layer in self.layers]

    def _decode(self, states: Tensor, first_position: int, past, memory: list[KeysValues]):
        places = torch.arange(first_position, first_position + states.shape[2], device=states.device)
        states, present = states + sine_encoding(places.float(), states.shape[-1]), []
        for i, layer in enumerate(self.layers):
            states, keys_values = layer(states, past and past[i], memory[i])
            present.append(keys_values)
        return states, present
