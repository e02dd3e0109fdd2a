"""Which samples make each step of a run, and which of them each rank takes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from bbu_train.types.samples import Draw, Step

log = logging.getLogger(__name__)
MicroBatch = tuple[Draw, ...]
"""The samples of one micro-batch of one rank; none if there are too few for all."""


@runtime_checkable
class Source(Protocol):
    """What planning needs to know of `training.loader.SampleSource`."""

    @property
    def samples(self) -> Sequence[object]: ...
    @property
    def max_tokens(self) -> int: ...
    def num_tokens(self, draw: Draw) -> int: ...
    def cost(self, draw: Draw) -> int: ...
    def name(self, draw: Draw) -> str: ...
    def admissible(self, epoch: int) -> list[int]: ...


@runtime_checkable
class Sampler(Protocol):
    """A choice of conf/sampler."""

    def epoch(
        self,
        epoch: int,
        indices: Sequence[int],
        num_tokens: Callable[[Draw], int],
        cost: Callable[[Draw], int],
        name: Callable[[Draw], str],
    ) -> list[Step]: ...


def in_order(source: Source, num_samples: int) -> list[Step]:
    """Plan every sample once, in order, `num_samples` a step."""
    draws = [Draw(0, i) for i in _admissible_indices(source, 0)]
    return [(tuple(draws[i : i + num_samples]),) for i in range(0, len(draws), num_samples)]


class StepPlan:
    """Every step of a run, planned one epoch at a time, so that memory holds one epoch at most.

    The constructor plans all epochs once, to count their steps. So a resumed run starts in its own epoch, and a sample
    that cannot be planned (teachers are drawn anew in each epoch) is found before the model loads, not hours later.
    This takes tens of microseconds a sample, or about a hundred with augmentation; training takes milliseconds.
    """

    def __init__(self, sampler: Sampler, source: Source, num_steps: int):
        self.sampler = sampler
        self.source = source
        self.num_steps = num_steps
        self._steps_by_epoch: list[int] = []
        while sum(self._steps_by_epoch) < num_steps:
            epoch = len(self._steps_by_epoch)
            self._steps_by_epoch.append(len(self._plan_epoch(epoch, _admissible_indices(source, epoch))))

    def starting_at(self, first: int) -> Iterator[Step]:
        """Yield the steps from number `first` on. A step does not depend on `first`, so a resumed run repeats none."""
        epoch_start = 0
        for epoch, num_steps in enumerate(self._steps_by_epoch):
            if first < epoch_start + num_steps:
                remaining = slice(max(0, first - epoch_start), self.num_steps - epoch_start)
                yield from self._plan_epoch(epoch, self.source.admissible(epoch))[remaining]
            epoch_start += num_steps

    def _plan_epoch(self, epoch: int, indices: Sequence[int]) -> list[Step]:
        return self.sampler.epoch(epoch, indices, self.source.num_tokens, self.source.cost, self.source.name)


def _admissible_indices(source: Source, epoch: int) -> list[int]:
    """Return the admissible samples, and log how many are left out."""
    indices = source.admissible(epoch)
    num_left_out = len(source.samples) - len(indices)
    if num_left_out:
        log.warning("epoch %d: %d samples over %d tokens are left out", epoch, num_left_out, source.max_tokens)
    return indices


def split(step: Step, num_parts: int, cost: Callable[[Draw], int]) -> list[MicroBatch]:
    """Split a step's samples into `num_parts` parts of about equal cost, the most costly part first.

    Each sample, the most costly first, goes to the part that costs least so far (Graham 1969). The rows that the
    sampler planned stay whole if there are enough of them. A part may be empty.
    """
    units = step if len(step) >= num_parts else tuple((draw,) for row in step for draw in row)
    costs = [sum(map(cost, unit)) for unit in units]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for i in sorted(range(len(units)), key=lambda i: -costs[i]):
        cheapest = totals.index(min(totals))
        parts[cheapest].append(i)
        totals[cheapest] += costs[i]
    by_cost = sorted(range(num_parts), key=lambda part: -totals[part])
    return [tuple(draw for i in sorted(parts[part]) for draw in units[i]) for part in by_cost]


def assign_micro_batches(
    step: Step, num_ranks: int, num_micro_batches: int, cost: Callable[[Draw], int]
) -> list[list[MicroBatch]]:
    """Return the micro-batches of each rank, so that all micro-batches and all ranks cost about the same.

    Ranks wait for each other once a step, so their sums matter: parts go to the ranks back and forth, such as to ranks
    0, 1, 1, 0.
    """
    parts = split(step, num_ranks * num_micro_batches, cost)
    rounds = [parts[i : i + num_ranks] for i in range(0, len(parts), num_ranks)]
    rounds = [parts_of_round[::-1] if i % 2 else parts_of_round for i, parts_of_round in enumerate(rounds)]
    return [[parts_of_round[rank] for parts_of_round in rounds] for rank in range(num_ranks)]
