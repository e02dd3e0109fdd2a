"""Balancing the costs of rows: rows exchange samples where both have room for it."""

from collections.abc import Sequence

import numpy as np

MAX_GROUP = 64  # rows that exchange samples among themselves; larger groups need more memory and balance hardly better
NUM_TURNS = 8  # a row makes at most one exchange in each turn; 16 turns take twice the time and balance little better
EMPTY = -1  # an empty slot of a row, without tokens or cost; exchanging a sample with it moves the sample


def balance_costs(
    rows: Sequence[list[int]], lengths: Sequence[int], costs: Sequence[int], max_row_tokens: int
) -> list[list[int]]:
    """Return `rows` after exchanges of samples that bring the costs of rows closer together.

    A sample is an index into `lengths` (tokens) and `costs`. No row gets longer than `max_row_tokens`.

    In the first turn, the most expensive row is paired with the cheapest, the second most expensive with the second
    cheapest, and so on. Each further turn shifts the pairing by one more row, so that a row that found no exchange
    meets another row. A pair exchanges the two samples that leave the smallest difference in cost. Costs are integers,
    so their sums, and the plan with them, are the same on every machine.
    """
    lengths, costs = (np.array([*values, 0], dtype=np.int64) for values in (lengths, costs))  # index EMPTY is the 0
    balanced = list(rows)
    num_groups = -(-len(rows) // MAX_GROUP)
    for group in range(num_groups):
        row_slots = _pad(rows[group::num_groups])
        for turn in range(NUM_TURNS):
            _exchange(row_slots, lengths, costs, max_row_tokens, turn)
        balanced[group::num_groups] = [[i for i in row if i != EMPTY] for row in row_slots.tolist()]
    return [row for row in balanced if row]


def _pad(rows: Sequence[list[int]]) -> np.ndarray:
    num_slots = max(map(len, rows))
    return np.array([row + [EMPTY] * (num_slots - len(row)) for row in rows])


def _exchange(row_slots: np.ndarray, lengths: np.ndarray, costs: np.ndarray, max_row_tokens: int, turn: int) -> None:
    """Make at most one exchange in each pair of rows, in place. `row_slots` are samples, (rows, slots of a row)."""
    row_costs = costs[row_slots].sum(1)
    room = max_row_tokens - lengths[row_slots].sum(1)
    order = np.argsort(row_costs, kind="stable")
    num_pairs = len(order) // 2
    expensive, cheap = order[::-1][:num_pairs], np.roll(order[:num_pairs], turn)
    gap = row_costs[expensive] - row_costs[cheap]
    # For each slot of the expensive row and each slot of the cheap row: the tokens that an exchange would move to the
    # cheap row, and the difference in cost that would remain.
    moved_tokens = lengths[row_slots[expensive]][:, :, None] - lengths[row_slots[cheap]][:, None, :]
    new_gap = np.abs(
        (gap[:, None] - 2 * costs[row_slots[expensive]])[:, :, None] + 2 * costs[row_slots[cheap]][:, None, :]
    )
    fits = (moved_tokens <= room[cheap][:, None, None]) & (moved_tokens >= -room[expensive][:, None, None])
    new_gap = np.where(fits, new_gap, np.iinfo(np.int64).max).reshape(num_pairs, row_slots.shape[1] ** 2)
    best = new_gap.argmin(1)
    helps = new_gap[np.arange(num_pairs), best] < gap
    expensive_slot, cheap_slot = np.divmod(best[helps], row_slots.shape[1])
    expensive, cheap = expensive[helps], cheap[helps]
    row_slots[expensive, expensive_slot], row_slots[cheap, cheap_slot] = (
        row_slots[cheap, cheap_slot],
        row_slots[expensive, expensive_slot],
    )
