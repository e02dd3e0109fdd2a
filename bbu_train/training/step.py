"""One optimizer step: the counts it is divided by, forward and backward of its micro-batches, and the update."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from bbu_train.ops.flops import Sizes
from bbu_train.optimizer.groups import set_learning_rates
from bbu_train.runtime import distributed
from bbu_train.runtime.host_copy import copy_to_host
from bbu_train.training.protocols import Criterion, Engine
from bbu_train.types.batch import Batch, Counts
from bbu_train.types.outputs import Losses


@dataclass(frozen=True)
class StepTotals:
    """What is known of a step before its forward pass, summed over all micro-batches and ranks.

    `num_positions` counts the positions of all rows, padding included. `should_end` says whether any rank must end: it
    travels with these sums because a message of its own would cost another exchange.
    """

    counts: Counts
    sizes: Sizes
    num_positions: int
    should_end: bool


def step_totals(micro_batches: Sequence[Batch], should_end: bool) -> StepTotals:
    """Sum over the micro-batches of all ranks, which call this together. Each says whether it must end."""
    parts = [(*astuple(batch.counts), *astuple(batch.sizes), batch.input_ids.numel()) for batch in micro_batches]
    on_this_rank = [*(sum(column) for column in zip(*parts, strict=True)), should_end]
    *numbers, num_positions, num_ending = distributed.sum_integers(on_this_rank)
    num_counts = len(fields(Counts))
    return StepTotals(Counts(*numbers[:num_counts]), Sizes(*numbers[num_counts:]), num_positions, num_ending > 0)


@dataclass(frozen=True)
class StepResult:
    """What a step gives to the log. `loss_sums` waits until the sums of all ranks have reached the host."""

    loss_sums: Callable[[], Losses]
    grad_norms: dict[str, float]


def train_step(
    engine: Engine,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    counts: Counts,
    rate_factor: float,
    sample_ids: list[str],
) -> StepResult:
    """Forward and backward of every micro-batch, then one update at `rate_factor` times each group's learning rate.

    Raises InputError, naming `sample_ids`, if a loss or a gradient is not finite on any rank: no weight has changed.
    """
    set_learning_rates(optimizer, rate_factor)
    sums: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches):
        is_last = i == len(micro_batches) - 1
        with engine.accumulate(last=is_last):  # around forward too: DistributedDataParallel arms its reducer there
            losses = engine(batch)  # sums, never means
            engine.backward(criterion.objective(losses, counts))
        sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
    # Start the copy before the update, so that reading the losses later does not wait for the update.
    on_host = copy_to_host(distributed.sum_over_ranks(torch.stack(list(sums.values()))))
    grad_norms = engine.step(sample_ids)
    return StepResult(lambda: dict(zip(sums, on_host(), strict=True)), grad_norms)
