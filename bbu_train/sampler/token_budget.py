"""A step is a number of rows, each filled with samples up to a number of tokens."""

from collections.abc import Callable, Sequence

from bbu_train.errors import InputError
from bbu_train.sampler.shuffle import shuffled
from bbu_train.types import Draw, Step


class TokenBudget:
    """`num_rows` rows a step, each of at most `max_row_tokens` tokens. Every epoch visits every sample once.

    Best-fit decreasing (Johnson 1974) within windows of `window` samples of the shuffled epoch: the longest first,
    each into the fullest row that still has room. A larger window fills rows better and shuffles less. The rows are
    shuffled again, so that a step does not hold the longest samples of its window.
    """

    def __init__(self, max_row_tokens: int, num_rows: int, window: int, seed: int):
        for name, value in (("max_row_tokens", max_row_tokens), ("num_rows", num_rows), ("window", window)):
            if value < 1:
                raise InputError(f"sampler.{name} is {value}; it must be at least 1.")
        self.max_row_tokens = max_row_tokens
        self.num_rows = num_rows
        self.window = window
        self.seed = seed

    def epoch(self, epoch: int, indices: Sequence[int], num_tokens: Callable[[Draw], int]) -> list[Step]:
        """The steps of one epoch over `indices`: a function of the seed, the epoch and the lengths alone."""
        draws = shuffled(self.seed, epoch, indices)
        rows: list[tuple[Draw, ...]] = []
        for start in range(0, len(draws), self.window):
            rows += self._fill([(num_tokens(draw), draw) for draw in draws[start : start + self.window]])
        rows = [rows[draw.index] for draw in shuffled(self.seed, -1 - epoch, range(len(rows)))]
        return [tuple(rows[i : i + self.num_rows]) for i in range(0, len(rows), self.num_rows)]

    def _fill(self, lengths: list[tuple[int, Draw]]) -> list[tuple[Draw, ...]]:
        rows: list[list[Draw]] = []
        room: list[int] = []
        for length, draw in sorted(lengths, key=lambda pair: -pair[0]):
            if length > self.max_row_tokens:
                raise InputError(
                    f"A sample of {length} tokens does not fit a row of sampler.max_row_tokens={self.max_row_tokens}. "
                    f"Raise it, or set collator.max_tokens={self.max_row_tokens} and collator.too_long=drop."
                )
            fitting = [i for i in range(len(rows)) if room[i] >= length]
            if not fitting:
                rows.append([])
                room.append(self.max_row_tokens)
                fitting = [len(rows) - 1]
            best = min(fitting, key=room.__getitem__)
            rows[best].append(draw)
            room[best] -= length
        return [tuple(row) for row in rows]
