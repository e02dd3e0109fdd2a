"""Rows of about equal cost: samples change places where both rows have room."""

from collections.abc import Sequence

import numpy as np

NUM_TOGETHER = 64  # rows at most that exchange among themselves: more take more memory and are hardly more even
NUM_TURNS = 8  # exchanges of a row at most: twice as many even costs little further and take twice the time
NONE = -1  # an empty place in a row: no tokens, no cost; to exchange it with a sample is to move the sample


def evened(
    rows: Sequence[list[int]], lengths: Sequence[int], costs: Sequence[int], max_row_tokens: int
) -> list[list[int]]:
    """`rows` of numbers into `lengths` and `costs`, with their costs brought together; no row gets too long.

    The dearest row pairs with the cheapest, the second dearest with the second cheapest, and so on; in every further
    turn each with the next, so that a row which found nothing to exchange meets another. A pair exchanges the two
    samples that leave it the smallest difference in cost. Costs are whole numbers, so that their sums, and with them
    the plan, are the same on every machine.
    """
    lengths, costs = (np.array([*values, 0], dtype=np.int64) for values in (lengths, costs))  # NONE finds the 0
    even = list(rows)
    num_groups = -(-len(rows) // NUM_TOGETHER)
    for first in range(num_groups):
        places = _padded(rows[first::num_groups])
        for turn in range(NUM_TURNS):
            _exchange(places, lengths, costs, max_row_tokens, turn)
        even[first::num_groups] = [[i for i in row if i != NONE] for row in places.tolist()]
    return [row for row in even if row]


def _padded(rows: Sequence[list[int]]) -> np.ndarray:
    most = max(map(len, rows))
    return np.array([row + [NONE] * (most - len(row)) for row in rows])


def _exchange(places: np.ndarray, lengths: np.ndarray, costs: np.ndarray, max_row_tokens: int, turn: int) -> None:
    """At most one exchange in each pair of rows, in place."""
    row_costs = costs[places].sum(1)
    room = max_row_tokens - lengths[places].sum(1)
    order = np.argsort(row_costs, kind="stable")
    num_pairs = len(order) // 2
    dear, cheap = order[::-1][:num_pairs], np.roll(order[:num_pairs], turn)
    gap = row_costs[dear] - row_costs[cheap]
    # For a place of the dear row and one of the cheap: the tokens that would go over, the gap that would be left.
    tokens = lengths[places[dear]][:, :, None] - lengths[places[cheap]][:, None, :]
    after = np.abs((gap[:, None] - 2 * costs[places[dear]])[:, :, None] + 2 * costs[places[cheap]][:, None, :])
    fits = (tokens <= room[cheap][:, None, None]) & (tokens >= -room[dear][:, None, None])
    after = np.where(fits, after, np.iinfo(np.int64).max).reshape(num_pairs, places.shape[1] ** 2)
    best = after.argmin(1)
    helps = after[np.arange(num_pairs), best] < gap
    given, taken = np.divmod(best[helps], places.shape[1])
    dear, cheap = dear[helps], cheap[helps]
    places[dear, given], places[cheap, taken] = places[cheap, taken], places[dear, given]
