"""Greedy decoding of many rows at once with a key-value cache."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, StaticCache

CACHE_GROWTH = 512  # tokens by which the cache grows at a time


class GeneratedTokens(NamedTuple):
    """Token ids of each row, filled with the end token after its end, and the probability of each token."""

    ids: Int[Tensor, "rows new"]
    probabilities: Float[Tensor, "rows new"]


class GreedyDecoder:
    """Appends the most probable token to every row at each step. A row that has ended gets end tokens.

    All state that changes in a step is kept in tensors that are updated in place. A GPU would wait for the host most of
    the time, so the kernels of one step are captured as a CUDA graph and replayed, which needs fixed addresses.
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
        """`cache` holds the keys and values of all slots of the prompts; `is_token` is False for padding slots."""
        self.language_model, self.embed, self.project = language_model, embed, project
        self.cache = cache
        self.prompt_length = is_token.shape[1]
        self.is_token = pad(is_token, (0, max_new_tokens), value=True)
        self.positions = position_ids[..., -1:].clone()  # all three coordinates advance by 1 for each text token
        self.end_token = end_token
        self.ids = torch.full((len(is_token), max_new_tokens), end_token, device=is_token.device)
        self.probabilities = torch.ones(self.ids.shape, device=is_token.device)
        self.last = self.ids[:, :1].clone()
        self.num_generated = torch.zeros(1, dtype=torch.long, device=is_token.device)
        self.ended = torch.zeros(len(is_token), dtype=torch.bool, device=is_token.device)

    def decode(self, hidden: Float[Tensor, "rows width"]) -> GeneratedTokens:
        """Decode until every row has ended or the limit is reached. `hidden` has the last state of each prompt."""
        self._append_most_probable(hidden)
        max_new_tokens = self.ids.shape[1]
        for first in range(1, max_new_tokens, CACHE_GROWTH):
            if self.ended.all():
                break
            num_steps = min(CACHE_GROWTH, max_new_tokens - first)
            self._grow_cache(self.prompt_length + first - 1, num_steps)
            step = run_and_capture(self._step, self.ids.device)
            for _ in range(num_steps - 1):
                if self.ended.all():
                    break
                step()
        num_columns = min(int((self.ids != self.end_token).any(0).sum()) + 1, max_new_tokens)
        return GeneratedTokens(self.ids[:, :num_columns], self.probabilities[:, :num_columns])

    def _append_most_probable(self, hidden: Float[Tensor, "rows width"]) -> None:
        most_probable = self.project(hidden).float().softmax(-1).max(-1)
        ids = most_probable.indices.masked_fill(self.ended, self.end_token)
        probabilities = most_probable.values.masked_fill(self.ended, 1.0)
        self.ids.index_copy_(1, self.num_generated, ids[:, None])
        self.probabilities.index_copy_(1, self.num_generated, probabilities[:, None])
        self.last.copy_(ids[:, None])
        self.ended.logical_or_(ids == self.end_token)
        self.num_generated += 1

    def _grow_cache(self, num_held: int, num_more: int) -> None:
        """Copy the `num_held` tokens of the cache into one with space for `num_more` further tokens."""
        larger = StaticCache(config=self.language_model.config, max_cache_len=num_held + num_more)
        for i, layer in enumerate(self.cache.layers):
            larger.update(layer.keys[:, :, :num_held], layer.values[:, :, :num_held], i)
        self.cache = larger
        self.slots = torch.arange(num_held + num_more, device=self.ids.device)

    def _step(self) -> None:
        self.positions += 1
        is_filled = self.slots < self.prompt_length + self.num_generated  # includes the slot of the last token
        hidden = self.language_model(
            inputs_embeds=self.embed(self.last),
            position_ids=self.positions,
            attention_mask=(self.is_token[:, : len(self.slots)] & is_filled)[:, None, None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self._append_most_probable(hidden)


def run_and_capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Call `function` once and return a callable that repeats it. On a GPU that callable replays a CUDA graph.

    All inputs and outputs must keep their addresses. Autocast's weight cache must be filled before this call.
    """
    if device.type != "cuda":
        function()
        return function
    stream, outer = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        function()  # warm-up: libraries initialise at the first call, which is not allowed during capture
    outer.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local lets other threads call CUDA during capture, such as the one that pins pictures loaded ahead.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph.replay
