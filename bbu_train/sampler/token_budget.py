"""A step is a number of rows, each filled with samples up to a number of tokens."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bbu_train.errors import InputError, all_problems
from bbu_train.runtime.seeds import generator
from bbu_train.sampler.exchange import evened
from bbu_train.sampler.fill import fill
from bbu_train.sampler.shuffle import shuffled
from bbu_train.types.samples import Draw, Step


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A plan is made of millions of objects that all stay: to look for garbage among them took a third of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class TokenBudget:
    """`num_rows` rows a step, each of at most `max_row_tokens` tokens. Every epoch visits every sample once.

    Rows are filled (fill.py) within windows of `window` samples of the shuffled epoch. The emptiest row of a window is
    not kept: its samples join the next one. A larger window fills rows better and shuffles less. Then the rows are
    shuffled, and exchange samples until they cost about the same (exchange.py): so steps do too, and the ranks that
    take a row each.
    """

    def __init__(self, max_row_tokens: int, num_rows: int, window: int, balanced_share: float, seed: int):
        for name, value in (("max_row_tokens", max_row_tokens), ("num_rows", num_rows), ("window", window)):
            if value < 1:
                raise InputError(f"sampler.{name} is {value}; it must be at least 1.")
        if not 0 <= balanced_share <= 1:
            raise InputError(f"sampler.balanced_share is {balanced_share}; it is a share of tokens, from 0 to 1.")
        self.max_row_tokens = max_row_tokens
        self.num_rows = num_rows
        self.window = window
        self.balanced_share = balanced_share
        self.seed = seed

    @_collector_paused()
    def epoch(
        self,
        epoch: int,
        indices: Sequence[int],
        num_tokens: Callable[[Draw], int],
        cost: Callable[[Draw], int],
        name: Callable[[Draw], str],
    ) -> list[Step]:
        """The steps of one epoch over `indices`: a function of the seed, the epoch, lengths and costs alone.

        `name` says in an error which sample it is.
        """
        draws = shuffled(self.seed, epoch, indices)
        lengths = [num_tokens(draw) for draw in draws]
        self._refuse_longer(draws, lengths, name)
        rows = self._filled(lengths)
        rows = [rows[i] for i in generator("rows", self.seed, epoch).permutation(len(rows)).tolist()]
        rows = evened(rows, lengths, [cost(draw) for draw in draws], self.max_row_tokens)
        planned = [tuple([draws[i] for i in row]) for row in rows]
        return [tuple(planned[i : i + self.num_rows]) for i in range(0, len(planned), self.num_rows)]

    def _filled(self, lengths: Sequence[int]) -> list[list[int]]:
        rows: list[list[int]] = []
        left: list[int] = []
        for start in range(0, len(lengths), self.window):
            samples = [*left, *range(start, min(start + self.window, len(lengths)))]
            *filled, left = fill(samples, lengths, self.max_row_tokens, self.balanced_share)
            rows += filled
        return [*rows, left] if left else rows

    def _refuse_longer(self, draws: Sequence[Draw], lengths: Sequence[int], name: Callable[[Draw], str]) -> None:
        limit = self.max_row_tokens
        longer = sorted((draw, length) for draw, length in zip(draws, lengths, strict=True) if length > limit)
        if longer:
            raise all_problems(
                f"Samples do not fit a row of sampler.max_row_tokens={limit}",
                [f"{name(draw)}: {length} tokens in epoch {draw.epoch}" for draw, length in longer],
                "Raise sampler.max_row_tokens, lower model.max_pixels, or leave them out with "
                f"collator.max_tokens={limit} collator.too_long=drop.",
            )
