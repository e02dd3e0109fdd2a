"""The micro-batches of each step of a run, in a number that may change from one step to the next."""

from collections.abc import Iterator
from itertools import tee

from bbu_train.runtime import distributed
from bbu_train.training import loader
from bbu_train.training.setup import RunInputs
from bbu_train.types.batch import Batch
from bbu_train.types.samples import PlannedStep


class StepBatches:
    """An iterator over the steps: the names of a step's samples, and this rank's micro-batches of them, on the host.

    They are encoded ahead of time by `num_workers` processes.
    """

    def __init__(self, inputs: RunInputs, num_workers: int):
        self.inputs = inputs
        self.num_workers = num_workers
        self._steps: Iterator[PlannedStep] = iter(())
        self._batches: Iterator[list[Batch]] = iter(())

    def start(self, step: int, num_micro_batches: int) -> None:
        """Go on at step number `step`, from 0, with so many micro-batches. What was encoded ahead is dropped."""
        self._batches = iter(())  # ends the workers of the former iterator
        self._steps, ahead = tee(self.inputs.plan.starting_at(step))
        ranks = distributed.rank(), distributed.world_size()
        sources = self.inputs.train, self.inputs.collator
        self._batches = loader.batches(*sources, ahead, num_micro_batches, *ranks, self.num_workers)

    def __next__(self) -> tuple[list[str], list[Batch]]:
        return self.inputs.train.names(next(self._steps)), next(self._batches)
