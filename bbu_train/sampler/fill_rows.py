"""Packing samples into rows with a limited number of tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapreplace


def fill_rows(
    samples: Sequence[int], lengths: Sequence[int], max_row_tokens: int, balanced_share: float
) -> list[list[int]]:
    """Return rows of `samples`, which are indices into `lengths` (tokens); the emptiest row is the last.

    First, the longest samples, until they hold the share `balanced_share` of all tokens, are spread: each goes to the
    row with the fewest tokens so far (longest processing time first, Graham 1969), so that every row gets long and
    short samples. Then each other sample, the longest first, goes to the fullest row that still has room for it
    (best-fit decreasing, Johnson 1974). Best fit alone fills rows better, but it makes rows of long samples and rows of
    short ones, whose costs differ.
    """
    total = sum(lengths[i] for i in samples)
    num_rows = -(-total // max_row_tokens)
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    room = [max_row_tokens] * num_rows
    # A heap of (tokens, row). All rows together have more room than there are tokens. The last row is treated as if it
    # already held this surplus, so it is the one that stays emptier.
    levels = [(0, row) for row in range(num_rows - 1)] + [(num_rows * max_row_tokens - total, num_rows - 1)]
    order = sorted(samples, key=lengths.__getitem__, reverse=True)
    tokens_left = balanced_share * total
    num_assigned = 0
    while tokens_left > 0:
        length = lengths[order[num_assigned]]
        level, row = levels[0]
        if level + length > max_row_tokens:
            break
        heapreplace(levels, (level + length, row))
        rows[row].append(order[num_assigned])
        room[row] -= length
        tokens_left -= length
        num_assigned += 1
    return _best_fit(order[num_assigned:], lengths, max_row_tokens, rows, room)


def _best_fit(
    samples: Sequence[int], lengths: Sequence[int], max_row_tokens: int, rows: list[list[int]], room: list[int]
) -> list[list[int]]:
    """Add `samples` to `rows`, opening more rows if needed; return the rows that are not empty, the fullest first."""
    by_room = sorted((free, row) for row, free in enumerate(room))
    for i in samples:
        best = bisect_left(by_room, (lengths[i], 0))
        if best < len(by_room):
            free, row = by_room.pop(best)
        else:
            free, row = max_row_tokens, len(rows)
            rows.append([])
        rows[row].append(i)
        insort(by_room, (free - lengths[i], row))
    return [rows[row] for _, row in by_room if rows[row]]
