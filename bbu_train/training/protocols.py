"""What the training loop expects of the components that a config chooses.

The protocols are checkable at run time because the tests check every annotation with beartype.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bbu_train.types.batch import Batch, Counts
from bbu_train.types.outputs import Losses, Outputs


@runtime_checkable
class Criterion(Protocol):
    """A choice of conf/loss: sums over a batch, their means, and the one number to minimise.

    `weights` has the weight of each loss in that number, by its name in `Losses`.
    """

    weights: dict[str, float]

    def __call__(self, outputs: Outputs, batch: Batch) -> Losses: ...
    def means(self, sums: Losses, counts: Counts) -> Losses: ...
    def objective(self, sums: Losses, counts: Counts) -> Tensor: ...


@runtime_checkable
class Engine(Protocol):
    """A choice of conf/engine: forward, backward and update, on one device or many."""

    device: torch.device
    precision: str
    num_micro_batches: int

    def __call__(self, batch: Batch) -> Losses: ...
    def autocast(self) -> AbstractContextManager[object]: ...
    def accumulate(self, last: bool) -> AbstractContextManager[object]: ...
    def backward(self, objective: Tensor) -> None: ...
    def lay_out(self, gradient_checkpointing: str, num_micro_batches: int) -> None: ...
    def step(self, sample_ids: list[str]) -> dict[str, float]: ...
    def discard(self) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class Average(Protocol):
    """A choice of conf/average: which weights are evaluated and saved."""

    def update(self, num_steps: int) -> None: ...
    def applied(self) -> AbstractContextManager[object]: ...
    def weights(self) -> dict[str, Tensor]: ...
    def unaveraged_weights(self) -> dict[str, Tensor]: ...
    def load(self, weights: dict[str, Tensor]) -> None: ...


@runtime_checkable
class Stopping(Protocol):
    """A choice of conf/stopping: whether a run ends before its last step.

    `rule` says when it would, and `reason` why it ends now; each is None if there is none. `update` sees every
    evaluation once. The state is that of a checkpoint.
    """

    rule: str | None
    reason: str | None

    def update(self, metrics: Mapping[str, float]) -> None: ...
    def state_dict(self) -> dict[str, float]: ...
    def load_state_dict(self, state: Mapping[str, float]) -> None: ...


Schedule = Callable[[int], float]
"""A choice of conf/schedule: the factor of every learning rate at a step, counted from 0."""
