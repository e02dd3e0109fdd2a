"""Samples into rows of at most so many tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapreplace


def fill(samples: Sequence[int], lengths: Sequence[int], max_row_tokens: int, balanced_share: float) -> list[list[int]]:
    """`samples`, numbers into `lengths`, in rows; the emptiest row last.

    The longest, with a share `balanced_share` of all tokens, are dealt, each to the row with the fewest tokens (Graham 1969), so
    that every row has some of each kind. The others fill the rows: the longest first, each into the fullest row that
    still has room (best-fit decreasing, Johnson 1974). Best fit alone fills rows better, but makes rows of long samples
    and rows of short ones, whose costs differ.
    """
    total = sum(lengths[i] for i in samples)
    num_rows = -(-total // max_row_tokens)
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    room = [max_row_tokens] * num_rows
    # The last row is the one that is not filled: it gets as much less as the rows have more room than there are tokens.
    levels = [(0, row) for row in range(num_rows - 1)] + [(num_rows * max_row_tokens - total, num_rows - 1)]  # a heap
    order = sorted(samples, key=lengths.__getitem__, reverse=True)
    to_deal = balanced_share * total
    num_dealt = 0
    while to_deal > 0:
        length = lengths[order[num_dealt]]
        level, row = levels[0]
        if level + length > max_row_tokens:
            break
        heapreplace(levels, (level + length, row))
        rows[row].append(order[num_dealt])
        room[row] -= length
        to_deal -= length
        num_dealt += 1
    return _best_fit(order[num_dealt:], lengths, max_row_tokens, rows, room)


def _best_fit(order: Sequence[int], lengths, max_row_tokens: int, rows: list[list[int]], room: list[int]):
    """`rows` with the samples of `order` added, where need be in more rows; those with the least room first."""
    by_room = sorted((free, row) for row, free in enumerate(room))
    for i in order:
        best = bisect_left(by_room, (lengths[i], 0))
        if best < len(by_room):
            free, row = by_room.pop(best)
        else:
            free, row = max_row_tokens, len(rows)
            rows.append([])
        rows[row].append(i)
        insort(by_room, (free - lengths[i], row))
    return [rows[row] for _, row in by_room if rows[row]]
