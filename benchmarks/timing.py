"""Time contenders in turns: on a machine that others use too, only runs a moment apart can be compared.

Not a program of its own; the host benchmarks import it.
"""

import statistics
import time
from collections.abc import Callable, Mapping

Contenders = Mapping[str, Callable[[], object]]
Seconds = dict[str, list[float]]
"""Seconds of each contender in each round."""


def time_in_turns(contenders: Contenders, num_rounds: int, clock: Callable[[], float]) -> Seconds:
    """Run every contender once per round. The order reverses from round to round; one warm-up round is not counted."""
    seconds: Seconds = {name: [] for name in contenders}
    for i in range(-1, num_rounds):
        for name in list(contenders)[:: 1 if i % 2 else -1]:
            start = clock()
            contenders[name]()
            if i >= 0:
                seconds[name].append(clock() - start)
    return seconds


def wall_seconds(contenders: Contenders, num_rounds: int) -> Seconds:
    return time_in_turns(contenders, num_rounds, time.perf_counter)


def processor_seconds(contenders: Contenders, num_rounds: int) -> Seconds:
    """Processor time of this process, which other programs on the machine do not lengthen."""
    return time_in_turns(contenders, num_rounds, time.process_time)


def compare(what: str, seconds: Seconds, name: str, peer: str, num_items: int = 1) -> dict[str, object]:
    """Return a row of the table: median seconds per item of `name` and `peer`, and the median ratio of the rounds.

    `num_items` is the number of items that a round processes.
    """
    ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[peer], strict=True))
    median, peer_median = (statistics.median(seconds[each]) / num_items for each in (name, peer))
    return {"what": what, "seconds": median, "peer": peer, "peer_seconds": peer_median, "ratio": ratio}
