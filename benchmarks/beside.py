"""Contenders in turns: on a machine that others use too, only what ran a moment apart can be compared."""

import statistics
import time
from collections.abc import Callable

Seconds = dict[str, list[float]]


def timed(contenders: dict[str, Callable[[], object]], num_rounds: int, clock: Callable[[], float]) -> Seconds:
    """Seconds of each contender in each round, by `clock`: `time.process_time` does not count what others take.

    The order turns around from round to round, and a round before the first is not counted.
    """
    seconds: Seconds = {name: [] for name in contenders}
    for i in range(-1, num_rounds):
        for name in list(contenders)[:: 1 if i % 2 else -1]:
            began = clock()
            contenders[name]()
            if i >= 0:
                seconds[name].append(clock() - began)
    return seconds


def row(what: str, seconds: Seconds, ours: str, peer: str, per: int = 1) -> dict[str, object]:
    """A line of the table: medians, and the median of the rounds' ratios. `per` is how many things a round makes."""
    ratios = [mine / theirs for mine, theirs in zip(seconds[ours], seconds[peer], strict=True)]
    mine, theirs = (statistics.median(seconds[name]) / per for name in (ours, peer))
    return {"what": what, "seconds": mine, "peer": peer, "peer_seconds": theirs, "ratio": statistics.median(ratios)}


def wall(contenders: dict[str, Callable[[], object]], num_rounds: int) -> Seconds:
    return timed(contenders, num_rounds, time.perf_counter)


def processor(contenders: dict[str, Callable[[], object]], num_rounds: int) -> Seconds:
    return timed(contenders, num_rounds, time.process_time)
