"""Which samples make each step of a run, and which of them each rank takes."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Protocol, runtime_checkable

from bbu_train.types.samples import PlannedStep, SampleVisit
from bbu_train.types.too_long import TooLong

log = logging.getLogger(__name__)
MicroBatch = tuple[SampleVisit, ...]
"""The samples of one micro-batch of one rank; none if there are too few for all."""


@runtime_checkable
class Source(Protocol):
    """What planning needs to know of `training.loader.SampleSource`."""

    @property
    def samples(self) -> Sequence[object]: ...
    @property
    def max_tokens(self) -> int: ...
    def num_tokens(self, visit: SampleVisit) -> int: ...
    def cost(self, visit: SampleVisit) -> int: ...
    def name(self, visit: SampleVisit) -> str: ...
    def indices_within_limit(self, epoch: int) -> list[int]: ...


@runtime_checkable
class Sampler(Protocol):
    """A choice of conf/sampler."""

    def epoch(
        self,
        epoch: int,
        indices: Sequence[int],
        num_tokens: Callable[[SampleVisit], int],
        cost: Callable[[SampleVisit], int],
        name: Callable[[SampleVisit], str],
    ) -> list[PlannedStep]: ...


def in_order(source: Source, num_samples: int) -> list[PlannedStep]:
    """Plan every sample once, in order, `num_samples` a step."""
    visits = [SampleVisit(0, i) for i in _indices_within_limit(source, 0)]
    return [(tuple(visits[i : i + num_samples]),) for i in range(0, len(visits), num_samples)]


def plan_run(
    sampler: Sampler,
    train: Source,
    length: int | Fraction,
    validation: Source,
    eval_batch_size: int,
    max_positions: int,
) -> tuple["StepPlan", list[PlannedStep]]:
    """Plan the steps of a run, and the batches of an evaluation. Raises TooLong for long samples of both together."""
    errors: list[TooLong] = []
    plan, evaluation_steps = None, []
    try:
        plan = StepPlan(sampler, train, length)
    except TooLong as error:
        errors.append(error)
    try:
        evaluation_steps = in_order(validation, eval_batch_size)
    except TooLong as error:
        errors.append(error)
    if errors or plan is None:
        first = errors[0]
        lengths = {
            sample: length for error in errors if error.key == first.key for sample, length in error.lengths.items()
        }
        raise TooLong(first.key, first.limit, lengths, max_positions)
    return plan, evaluation_steps


class StepPlan:
    """Every step of a run, planned one epoch of the sampler at a time, so that memory holds one epoch at most.

    `length` is the number of steps, or the Fraction of passes over the data: of a part of an epoch, its steps are
    rounded up. An epoch of the sampler is a pass unless it visits some samples alone, as the first ones of
    `shortest_first` do.

    The constructor plans every epoch once and keeps only its number of steps and visits. This lets a resumed run jump
    to the epoch of its next step. It also finds a sample that becomes too long with the teachers of a later epoch
    before the model loads, not hours later. Planning takes tens of microseconds a sample, or about a hundred with
    augmentation; training takes milliseconds.
    """

    def __init__(self, sampler: Sampler, source: Source, length: int | Fraction):
        self.sampler = sampler
        self.source = source
        self.length = length
        self.most_samples = 0  # of a step
        self._steps_by_epoch: list[int] = []
        self._passes_by_epoch: list[Fraction] = []
        if isinstance(length, Fraction):
            passes = Fraction(0)
            while passes < length:
                self._count_next_epoch()
                passes += self._passes_by_epoch[-1]
            surplus = (passes - length) / self._passes_by_epoch[-1]
            self.num_steps = sum(self._steps_by_epoch) - math.floor(surplus * self._steps_by_epoch[-1])
        else:
            self.num_steps = length
            while sum(self._steps_by_epoch) < length:
                self._count_next_epoch()

    def _count_next_epoch(self) -> None:
        epoch = len(self._steps_by_epoch)
        try:
            indices = _indices_within_limit(self.source, epoch)
            steps = self._plan_epoch(epoch, indices)
        except TooLong as error:
            raise self._in_all_epochs(error, epoch) from None
        num_samples = [sum(map(len, step)) for step in steps]
        self._steps_by_epoch.append(len(steps))
        self._passes_by_epoch.append(Fraction(sum(num_samples), len(indices)))
        self.most_samples = max(self.most_samples, *num_samples)

    def starting_at(self, first: int) -> Iterator[PlannedStep]:
        """Yield the steps from number `first` on. A step does not depend on `first`, so a resumed run repeats none."""
        epoch_start = 0
        for epoch, num_steps in enumerate(self._steps_by_epoch):
            if first < epoch_start + num_steps:
                remaining = slice(max(0, first - epoch_start), self.num_steps - epoch_start)
                yield from self._plan_epoch(epoch, self.source.indices_within_limit(epoch))[remaining]
            epoch_start += num_steps

    def _in_all_epochs(self, error: TooLong, epoch: int) -> TooLong:
        """Return the error with the long samples of all epochs that the run would have from `epoch` on.

        Teachers and views differ from epoch to epoch, and so do lengths.
        """

        def cut_length(visit: SampleVisit) -> int:
            return min(self.source.num_tokens(visit), error.limit)

        everything = range(len(self.source.samples))
        try:
            steps = self.sampler.epoch(epoch, everything, cut_length, self.source.cost, self.source.name)
        except TooLong as narrower:  # the limit of a row is below that of a sample
            return self._in_all_epochs(narrower, epoch)
        if isinstance(self.length, Fraction):
            num_epochs = math.ceil(self.length - sum(self._passes_by_epoch))
        else:
            num_epochs = math.ceil((self.length - sum(self._steps_by_epoch)) / len(steps))
        visits = [SampleVisit(each, i) for each in range(epoch, epoch + num_epochs) for i in everything]
        lengths = {visit: length for visit in visits if (length := self.source.num_tokens(visit)) > error.limit}
        return TooLong.of_visits(error.key, error.limit, lengths, self.source.name)

    def epoch_at(self, step: int) -> float:
        """Return how many passes over the data are done after `step` steps, such as 2.5."""
        passes = Fraction(0)
        for num_steps, share in zip(self._steps_by_epoch, self._passes_by_epoch, strict=True):
            if step < num_steps:
                return float(passes + share * step / num_steps)
            step -= num_steps
            passes += share
        return float(passes)

    def _plan_epoch(self, epoch: int, indices: Sequence[int]) -> list[PlannedStep]:
        return self.sampler.epoch(epoch, indices, self.source.num_tokens, self.source.cost, self.source.name)


def _indices_within_limit(source: Source, epoch: int) -> list[int]:
    """Return the indices of the samples that are short enough, and log how many are left out."""
    indices = source.indices_within_limit(epoch)
    num_left_out = len(source.samples) - len(indices)
    if num_left_out:
        log.warning("epoch %d: %d samples over %d tokens are left out", epoch, num_left_out, source.max_tokens)
    return indices


def split(step: PlannedStep, num_parts: int, cost: Callable[[SampleVisit], int]) -> list[MicroBatch]:
    """Split a step's samples into `num_parts` parts of about equal cost, the most costly part first.

    Each sample, the most costly first, goes to the part that costs least so far (Graham 1969). The rows that the
    sampler planned stay whole if there are enough of them. A part may be empty.
    """
    units = step if len(step) >= num_parts else tuple((visit,) for row in step for visit in row)
    costs = [sum(map(cost, unit)) for unit in units]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for i in sorted(range(len(units)), key=lambda i: -costs[i]):
        cheapest = totals.index(min(totals))
        parts[cheapest].append(i)
        totals[cheapest] += costs[i]
    by_cost = sorted(range(num_parts), key=lambda part: -totals[part])
    return [tuple(visit for i in sorted(parts[part]) for visit in units[i]) for part in by_cost]


def assign_micro_batches(
    step: PlannedStep, num_ranks: int, num_micro_batches: int, cost: Callable[[SampleVisit], int]
) -> list[list[MicroBatch]]:
    """Return the micro-batches of each rank, so that all micro-batches and all ranks cost about the same.

    Ranks wait for each other once a step, so their sums matter: parts go to the ranks back and forth, such as to ranks
    0, 1, 1, 0.
    """
    parts = split(step, num_ranks * num_micro_batches, cost)
    rounds = [parts[i : i + num_ranks] for i in range(0, len(parts), num_ranks)]
    rounds = [parts_of_round[::-1] if i % 2 else parts_of_round for i, parts_of_round in enumerate(rounds)]
    return [[parts_of_round[rank] for parts_of_round in rounds] for rank in range(num_ranks)]
