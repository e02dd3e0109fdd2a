"""Which samples make each step of a run, and which of them each rank takes. `source` is that of loader.py."""

import logging
from collections.abc import Callable, Iterator, Sequence

from bbu_train.types.samples import Draw, Step

log = logging.getLogger(__name__)
Part = tuple[Draw, ...]


def in_order(source, num_samples: int) -> list[Step]:
    """Every sample once, in order, `num_samples` at a time."""
    draws = [Draw(0, i) for i in _admitted(source, 0)]
    return [(tuple(draws[i : i + num_samples]),) for i in range(0, len(draws), num_samples)]


class StepPlan:
    """Every step of a run, planned an epoch at a time: no more than one epoch is held.

    All epochs are planned once when the plan is made, to count their steps. So a resumed run begins in its own epoch,
    and what cannot be planned is found before the model loads and not at the beginning of the seventh epoch, as
    teachers are drawn anew in each. That takes tens of microseconds a sample, with views of their own in each epoch a
    hundred, of which the training takes tens of milliseconds.
    """

    def __init__(self, sampler, source, num_steps: int):
        self.sampler = sampler
        self.source = source
        self.num_steps = num_steps
        self._num_steps_of: list[int] = []  # of each epoch
        while sum(self._num_steps_of) < num_steps:
            epoch = len(self._num_steps_of)
            self._num_steps_of.append(len(self._epoch(epoch, _admitted(source, epoch))))

    def starting_at(self, first: int) -> Iterator[Step]:
        """The steps from number `first` on. They do not depend on `first`: a resumed run goes on in the same plan."""
        begins = 0
        for epoch, num_steps in enumerate(self._num_steps_of):
            if first < begins + num_steps:
                wanted = slice(max(0, first - begins), self.num_steps - begins)
                yield from self._epoch(epoch, self.source.admissible(epoch))[wanted]
            begins += num_steps

    def _epoch(self, epoch: int, indices: Sequence[int]) -> list[Step]:
        return self.sampler.epoch(epoch, indices, self.source.num_tokens, self.source.cost, self.source.name)


def _admitted(source, epoch: int) -> list[int]:
    """The admissible samples; says how many are left out."""
    indices = source.admissible(epoch)
    num_left_out = len(source.samples) - len(indices)
    if num_left_out:
        log.warning("epoch %d: %d samples over %d tokens are left out", epoch, num_left_out, source.max_tokens)
    return indices


def split(step: Step, num_parts: int, cost: Callable[[Draw], int]) -> list[Part]:
    """A step's samples in `num_parts` parts of about equal cost, the dearest first. A part may be empty.

    The dearest sample goes first, to the part that costs least so far (Graham 1969). Planned rows stay whole where
    there are enough of them.
    """
    units = step if len(step) >= num_parts else tuple((draw,) for row in step for draw in row)
    costs = [sum(map(cost, unit)) for unit in units]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for i in sorted(range(len(units)), key=lambda i: -costs[i]):
        cheapest = totals.index(min(totals))
        parts[cheapest].append(i)
        totals[cheapest] += costs[i]
    dearest_first = sorted(range(num_parts), key=lambda part: -totals[part])
    return [tuple(draw for i in sorted(parts[part]) for draw in units[i]) for part in dearest_first]


def deal(step: Step, num_ranks: int, num_micro_batches: int, cost: Callable[[Draw], int]) -> list[list[Part]]:
    """The micro-batches of each rank, at about equal cost of all micro-batches and of all ranks.

    Ranks wait for each other once a step, so it is their sums that count: parts are dealt to and fro, such as to ranks
    0, 1, 1, 0.
    """
    parts = split(step, num_ranks * num_micro_batches, cost)
    rounds = [parts[i : i + num_ranks] for i in range(0, len(parts), num_ranks)]
    rounds = [its[::-1] if i % 2 else its for i, its in enumerate(rounds)]
    return [[its[rank] for its in rounds] for rank in range(num_ranks)]
