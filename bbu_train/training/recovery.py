"""Going on when a device runs out of memory: the step is done again in more micro-batches, with the same gradient."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from bbu_train.errors import InputError
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.runtime import distributed, out_of_memory, restart
from bbu_train.training import planning
from bbu_train.training.learnt_layout import Adjustment, Device, LearntLayout
from bbu_train.training.protocols import Criterion, Engine
from bbu_train.training.setup import RunInputs
from bbu_train.training.step import StepResult, train_step
from bbu_train.training.step_batches import StepBatches
from bbu_train.training.validation import evaluate
from bbu_train.types.batch import Batch, Counts
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture

log = logging.getLogger(__name__)
Result = TypeVar("Result")
REMEDIES = (
    "Lower model.max_pixels or the number of teachers in a conversation, leave long samples out with a lower "
    "collator.max_tokens and collator.too_long=drop, take engine.gradient_checkpointing=full or a precision that needs "
    "less memory, or train on a larger device."
)


class Recovery:
    """Training steps and evaluations that are made again, in smaller parts, if the device runs out of memory.

    A failed attempt has changed nothing: the optimizer allocates before it writes, and the attempt's gradients are
    discarded. What was learnt holds for the rest of the run, and is kept in `folder` for when it is resumed. One of
    several ranks cannot repeat a step alone: all of them restart from the last checkpoint (`runtime/restart.py`).
    """

    def __init__(
        self,
        inputs: RunInputs,
        engine: Engine,
        criterion: Criterion,
        optimizer: MixedAdamW,
        num_workers: int,
        folder: Path,
    ):
        self.inputs = inputs
        self.engine = engine
        self.criterion = criterion
        self.optimizer = optimizer
        self.num_workers = num_workers
        self.folder = folder
        self.batches = StepBatches(inputs, num_workers)
        self.device = Device.of(engine.device)
        self.learnt = distributed.broadcast_from_main(LearntLayout.read(folder, self.device))
        self.asked = engine.num_micro_batches, max((len(row) for (row,) in inputs.evaluation_steps), default=1)
        engine.num_micro_batches = self.learnt.num_micro_batches(engine.num_micro_batches)
        self._repeated: set[int] = set()  # the numbers of micro-batches that were tried again without a change

    def batches_from(self, step: int) -> StepBatches:
        """Return the batches of this and all later steps, from number `step`. Their layout may change after a step."""
        self.batches.start(step, self.engine.num_micro_batches)
        return self.batches

    def train_step(
        self, step: int, micro_batches: list[Batch], counts: Counts, rate_factor: float, sample_ids: list[str]
    ) -> StepResult:
        """Make step number `step`, from 0, as `train_step` does. `self.batches` has just returned its micro-batches.

        If it runs out of memory, it is made once more as it is, because freed memory may have been in too small pieces;
        then in twice as many micro-batches, and so on. Raises InputError if one sample alone does not fit.
        """
        may_repeat = True
        while True:
            taken = _MovedBatches(micro_batches, self.engine.device)
            parts = self.engine, self.criterion, self.optimizer
            result = self._attempt(partial(train_step, *parts, taken, counts, rate_factor, sample_ids))
            if not isinstance(result, OutOfMemory):
                return result
            if distributed.world_size() == 1:
                self.engine.discard()
                out_of_memory.release()
            if distributed.world_size() == 1 and may_repeat and self.engine.num_micro_batches not in self._repeated:
                log.info("step %d is made again: %s", step + 1, result.message)
                self._repeated.add(self.engine.num_micro_batches)
            else:
                self._split(step, taken, len(sample_ids), result)
                self.batches.start(step, self.engine.num_micro_batches)
                _, micro_batches = next(self.batches)
            may_repeat = False

    def evaluate(
        self, step: int, model: nn.Module, end_if_asked: Callable[[], None]
    ) -> tuple[dict[str, float], list[tuple[Picture, Prediction]]]:
        """Evaluate as `validation.evaluate` does, with half as many samples at a time while they do not fit."""
        while True:
            size = self._eval_batch_size()
            inputs = self.inputs
            if size < self.asked[1]:
                inputs = replace(inputs, evaluation_steps=planning.in_order(inputs.validation, size))
            asks = _CallCounter(end_if_asked)
            arguments = inputs, self.engine, model, self.criterion, self.num_workers, asks
            result = self._attempt(partial(evaluate, *arguments))
            if not isinstance(result, OutOfMemory):
                return result
            out_of_memory.release()
            if size == 1:
                index = (asks.count - 1) * distributed.world_size() + distributed.rank()
                ((visit,),) = inputs.evaluation_steps[index]
                batch = inputs.collator([inputs.validation.encode(visit)])
                raise self._does_not_fit(batch, "to be evaluated", result)
            self._learn(eval_batch_size=Adjustment(self.asked[1], size // 2, step))
            what = f"The evaluation after step {step} ran out of memory on a {self.device}"
            self._tell(f"{what}. From now on its batches have up to {size // 2} samples.", result)

    def _eval_batch_size(self) -> int:
        learnt = self.learnt.eval_batch_size
        return min(self.asked[1], learnt.taken) if learnt else self.asked[1]

    def _attempt(self, function: Callable[[], Result]) -> "Result | OutOfMemory":
        """Call `function`. The error is dropped with its traceback, which would hold activations.

        An error that comes after the optimizer has begun to write is raised: the step cannot be repeated.
        """
        num_updates = self.optimizer.num_updates
        try:
            return function()
        except Exception as error:
            if not out_of_memory.is_out_of_memory(error) or self.optimizer.num_updates != num_updates:
                raise
            return OutOfMemory((str(error).splitlines() or [type(error).__name__])[0])

    def _split(self, step: int, taken: "_MovedBatches", num_samples: int, failure: "OutOfMemory") -> None:
        """Take twice as many micro-batches from this step on, at most one for each sample."""
        if max(len(batch.sample_ids) for batch in taken.batches) == 1:
            raise self._does_not_fit(taken.last or taken.batches[0], "to be trained on", failure)
        num_ranks, before = distributed.world_size(), self.engine.num_micro_batches
        number = min(2 * before, math.ceil(num_samples / num_ranks))
        self._learn(num_parts=Adjustment(self.asked[0] * num_ranks, number * num_ranks, step))
        self.engine.num_micro_batches = number
        sizes = [batch.sizes for batch in taken.batches]
        self._tell(
            f"Step {step + 1} ran out of memory on a {self.device}. Its micro-batches had up to "
            f"{max(size.tokens for size in sizes):,} tokens and {max(size.patches for size in sizes):,} patches. From "
            f"now on a step has {number * num_ranks} of them instead of {before * num_ranks}, with the same gradient.",
            failure,
        )

    def _tell(self, change: str, failure: "OutOfMemory") -> None:
        """Say what changes. One of several ranks then restarts all of them, because they wait for it."""
        log.info("%s", failure.message)
        if distributed.world_size() > 1:
            restart.restart_all_ranks(f"{self.folder}: {change}")
        log.warning("%s", change)

    def _learn(self, **changes: Adjustment) -> None:
        self.learnt = replace(self.learnt, **changes)
        self.learnt.write(self.folder, self.device)

    def _does_not_fit(self, batch: Batch, purpose: str, failure: "OutOfMemory") -> InputError:
        return InputError(
            f"The sample {', '.join(batch.sample_ids)} alone needs too much memory {purpose}: it has "
            f"{batch.sizes.tokens:,} tokens, {batch.sizes.patches:,} patches of pictures and {batch.counts.objects} "
            f"objects, and the device is {self.device}. {REMEDIES} ({failure.message})"
        )


@dataclass(frozen=True)
class OutOfMemory:
    """The result of an attempt that ran out of memory: the first line of the error."""

    message: str


class _MovedBatches(Sequence[Batch]):
    """Micro-batches that move to the device when they are taken. `last` is the one that was taken last.

    After all were taken it is None: the update of the weights follows.
    """

    def __init__(self, batches: Sequence[Batch], device: torch.device):
        self.batches = batches
        self.device = device
        self.last: Batch | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        self.last = None
        self.last = self.batches[index]  # raises IndexError at the end
        return self.last.to(self.device)


class _CallCounter:
    """A function that counts its calls."""

    def __init__(self, function: Callable[[], None]):
        self.function = function
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self.function()
