"""A step is a number of rows, each filled with samples up to a number of tokens."""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from bbu_train.errors import InputError
from bbu_train.sampler.shuffle import shuffled
from bbu_train.types import Draw, Step


class TokenBudget:
    """`num_rows` rows a step, each of at most `max_row_tokens` tokens. Every epoch visits every sample once.

    Best-fit decreasing (Johnson 1974) within windows of `window` samples of the shuffled epoch: the longest first,
    each into the fullest row that still has room. The emptiest row of a window is not kept: its samples join the next
    one. A larger window fills rows better and shuffles less. The rows are shuffled again, so that a step does not hold
    the longest samples of its window.
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
        left: list[tuple[int, Draw]] = []  # with their lengths
        for start in range(0, len(draws), self.window):
            *filled, left = self._fill(left + [(num_tokens(draw), draw) for draw in draws[start : start + self.window]])
            rows += [tuple(draw for _, draw in row) for row in filled]
        if left:
            rows.append(tuple(draw for _, draw in left))
        rows = [rows[draw.index] for draw in shuffled(self.seed, -1 - epoch, range(len(rows)))]
        return [tuple(rows[i : i + self.num_rows]) for i in range(0, len(rows), self.num_rows)]

    def _fill(self, samples: list[tuple[int, Draw]]) -> list[list[tuple[int, Draw]]]:
        """The samples in rows, the emptiest last."""
        rows: list[list[tuple[int, Draw]]] = []
        room: list[tuple[int, int]] = []  # of each row, with its number, ascending
        for length, draw in sorted(samples, key=lambda pair: -pair[0]):
            best = bisect_left(room, (length, 0))
            if best < len(room):
                free, row = room.pop(best)
            else:
                free, row = self.max_row_tokens, len(rows)
                rows.append([])
            if length > free:
                raise InputError(
                    f"A sample of {length} tokens does not fit a row of sampler.max_row_tokens={self.max_row_tokens}. "
                    f"Raise it, or set collator.max_tokens={self.max_row_tokens} and collator.too_long=drop."
                )
            rows[row].append((length, draw))
            insort(room, (free - length, row))
        return [rows[row] for _, row in room]
