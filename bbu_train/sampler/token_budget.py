"""Steps with a fixed number of rows, each filled with samples up to a number of tokens."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bbu_train.errors import all_problems
from bbu_train.ops.numbers import is_count, is_number
from bbu_train.runtime.seeds import generator
from bbu_train.sampler.balance_rows import balance_costs
from bbu_train.sampler.fill_rows import fill_rows
from bbu_train.sampler.shuffle import shuffle
from bbu_train.types.samples import PlannedStep, SampleVisit
from bbu_train.types.too_long import TooLong


@contextmanager
def _pause_garbage_collection() -> Iterator[None]:
    """Pause garbage collection, which took a third of the time: planning creates millions of long-lived objects."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class TokenBudget:
    """Each step has `num_rows` rows of at most `max_row_tokens` tokens. An epoch visits every sample once, and
    its last step may have fewer rows.

    The shuffled epoch is cut into windows of `window` samples. Rows are filled within a window (fill_rows.py), except
    that the samples of its emptiest row join the next window. A larger window fills rows better and shuffles less. Then
    the rows are shuffled, and they exchange samples until all cost about the same (balance_rows.py). So steps cost
    about the same, and within a step so do ranks with one row each.
    """

    def __init__(self, max_row_tokens: int, num_rows: int, window: int, balanced_share: float, seed: int) -> None:
        counts = {"max_row_tokens": max_row_tokens, "num_rows": num_rows, "window": window}
        problems = [
            f"sampler.{name}={value}: expected a whole number of at least 1"
            for name, value in counts.items()
            if not is_count(value, 1)
        ]
        if not is_number(balanced_share) or not 0 <= balanced_share <= 1:
            problems.append(f"sampler.balanced_share={balanced_share}: expected a share of tokens, from 0 to 1")
        if problems:
            raise all_problems("The sampler", problems, "Set these keys in conf/sampler or as overrides.")
        self.max_row_tokens = max_row_tokens
        self.num_rows = num_rows
        self.window = window
        self.balanced_share = balanced_share
        self.seed = seed

    @_pause_garbage_collection()
    def epoch(
        self,
        epoch: int,
        indices: Sequence[int],
        num_tokens: Callable[[SampleVisit], int],
        cost: Callable[[SampleVisit], int],
        name: Callable[[SampleVisit], str],
    ) -> list[PlannedStep]:
        """Return the steps of one epoch over `indices`. They depend only on the seed, the epoch, lengths and costs.

        Raises InputError if samples do not fit a row, and names them by `name`.
        """
        visits = shuffle(self.seed, epoch, indices)
        lengths = [num_tokens(visit) for visit in visits]
        self._check_lengths(visits, lengths, name)
        rows = self._fill_windows(lengths)
        rows = [rows[i] for i in generator("rows", self.seed, epoch).permutation(len(rows)).tolist()]
        rows = balance_costs(rows, lengths, [cost(visit) for visit in visits], self.max_row_tokens)
        planned = [tuple([visits[i] for i in row]) for row in rows]
        return [tuple(planned[i : i + self.num_rows]) for i in range(0, len(planned), self.num_rows)]

    def _fill_windows(self, lengths: Sequence[int]) -> list[list[int]]:
        rows: list[list[int]] = []
        emptiest: list[int] = []
        for start in range(0, len(lengths), self.window):
            samples = [*emptiest, *range(start, min(start + self.window, len(lengths)))]
            *filled, emptiest = fill_rows(samples, lengths, self.max_row_tokens, self.balanced_share)
            rows += filled
        return [*rows, emptiest] if emptiest else rows

    def _check_lengths(
        self, visits: Sequence[SampleVisit], lengths: Sequence[int], name: Callable[[SampleVisit], str]
    ) -> None:
        limit = self.max_row_tokens
        longer = {visit: length for visit, length in zip(visits, lengths, strict=True) if length > limit}
        if longer:
            raise TooLong.of_visits("sampler.max_row_tokens", limit, longer, name)
