"""The likeliest next token of many rows, again and again, with a cache."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, StaticCache

ROOM = 512  # tokens for which a cache is made at once, beyond those it holds


class GeneratedTokens(NamedTuple):
    """Token ids of each row, the end token after its end, and the probability that each token had."""

    ids: Int[Tensor, "rows new"]
    probabilities: Float[Tensor, "rows new"]


class Writer:
    """Writes a token of each row at a time; a row that has ended goes on with end tokens.

    All that changes in a step lies in tensors that stay where they are, so that a GPU, which would wait for the host
    most of the time, can be given the kernels of a step once and repeat them.
    """

    def __init__(
        self,
        language_model: nn.Module,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        cache: Cache,
        is_token: Bool[Tensor, "rows slots"],
        position_ids: Int[Tensor, "3 rows slots"],
        end_token: int,
        max_new_tokens: int,
    ):
        """`cache` holds the keys and values of the slots of all prompts, `is_token` says which are no padding."""
        self.language_model, self.embed, self.project = language_model, embed, project
        self.cache = cache
        self.num_slots = is_token.shape[1]
        self.is_token = pad(is_token, (0, max_new_tokens), value=True)
        self.positions = position_ids[..., -1:].clone()  # after text all three count on together
        self.end_token = end_token
        self.ids = torch.full((len(is_token), max_new_tokens), end_token, device=is_token.device)
        self.probabilities = torch.ones(self.ids.shape, device=is_token.device)
        self.last = self.ids[:, :1].clone()
        self.num_written = torch.zeros(1, dtype=torch.long, device=is_token.device)
        self.ended = torch.zeros(len(is_token), dtype=torch.bool, device=is_token.device)

    def write(self, hidden: Float[Tensor, "rows width"]) -> GeneratedTokens:
        """Until every row has ended or the limit is reached. `hidden` are the last states of the prompts."""
        self._take(hidden)
        max_new_tokens = self.ids.shape[1]
        for first in range(1, max_new_tokens, ROOM):
            if self.ended.all():
                break
            num_steps = min(ROOM, max_new_tokens - first)
            self._make_room(self.num_slots + first - 1, num_steps)
            again = done_once(self._step, self.ids.device)
            for _ in range(num_steps - 1):
                if self.ended.all():
                    break
                again()
        num_columns = min(int((self.ids != self.end_token).any(0).sum()) + 1, max_new_tokens)
        return GeneratedTokens(self.ids[:, :num_columns], self.probabilities[:, :num_columns])

    def _take(self, hidden: Float[Tensor, "rows width"]) -> None:
        likeliest = self.project(hidden).float().softmax(-1).max(-1)
        ids = likeliest.indices.masked_fill(self.ended, self.end_token)
        self.ids.index_copy_(1, self.num_written, ids[:, None])
        self.probabilities.index_copy_(1, self.num_written, likeliest.values.masked_fill(self.ended, 1.0)[:, None])
        self.last.copy_(ids[:, None])
        self.ended.logical_or_(ids == self.end_token)
        self.num_written += 1

    def _make_room(self, num_held: int, num_more: int) -> None:
        """A cache of the `num_held` tokens of the one before, and room for more."""
        roomier = StaticCache(config=self.language_model.config, max_cache_len=num_held + num_more)
        for i, layer in enumerate(self.cache.layers):
            roomier.update(layer.keys[:, :, :num_held], layer.values[:, :, :num_held], i)
        self.cache = roomier
        self.slots = torch.arange(num_held + num_more, device=self.ids.device)

    def _step(self) -> None:
        self.positions += 1
        is_there = self.slots < self.num_slots + self.num_written  # the last of these slots is for the last token
        hidden = self.language_model(
            inputs_embeds=self.embed(self.last),
            position_ids=self.positions,
            attention_mask=(self.is_token[:, : len(self.slots)] & is_there)[:, None, None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self._take(hidden)


def done_once(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Calls the function once, and gives what calls it again: on a GPU its kernels alone, whose inputs and outputs have
    to stay where they are. What it reads of a cache of autocast must have been read before."""
    if device.type != "cuda":
        function()
        return function
    stream, outer = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        function()  # at first libraries make things that may not be made while kernels are recorded
    outer.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on meanwhile, such as the one that pins pictures read ahead.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph.replay
