"""How far a run has got, and how a checkpoint keeps it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bbu_train.checkpoint.background import BackgroundCheckpoints
from bbu_train.checkpoint.committed import Checkpoint
from bbu_train.checkpoint.load import load_weights
from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.errors import InputError
from bbu_train.runtime import distributed
from bbu_train.training.protocols import Average


@dataclass
class Progress:
    """Steps made, the step of the newest checkpoint, the metrics of the last evaluation and its step, and the state of
    early stopping.
    """

    step: int
    saved_at: int
    metrics: dict[str, float] = field(default_factory=dict)
    evaluated_at: int | None = None
    stopping: dict[str, float] = field(default_factory=dict)


KEPT = ("metrics", "evaluated_at", "stopping")
"""What a checkpoint has of `Progress`, beside its step."""


class Saver:
    """Saves a run's progress on rank 0, in the background, and lets all ranks end together if that fails.

    The optimizer's updates wait for the copy of a checkpoint. If `is_periodic`, memory for it is reserved from now on,
    so the optimizer's state must be allocated. `grace_seconds` is that of `BackgroundCheckpoints`.
    """

    def __init__(
        self,
        checkpoints: LocalCheckpoints,
        optimizer: torch.optim.Optimizer,
        average: Average,
        is_periodic: bool,
        grace_seconds: float | None,
    ) -> None:
        self.optimizer = optimizer
        self.average = average
        self.background = BackgroundCheckpoints(checkpoints, grace_seconds) if distributed.is_main() else None
        self._hook = optimizer.register_step_pre_hook(lambda *_: self.wait_for_copy())
        if is_periodic and self.background is not None:
            self.background.prepare(average.weights(), self._state())

    def save(self, progress: Progress) -> None:
        """Begin to save the present step. An error is raised by `raise_failure`, or `finish`, on all ranks."""
        if self.background is not None:
            kept = {name: getattr(progress, name) for name in KEPT}
            state = self._state() | kept
            metrics = progress.metrics if progress.evaluated_at == progress.step else {}
            self.background.save(progress.step, self.average.weights(), state, metrics)
        progress.saved_at = progress.step

    def wait_for_copy(self) -> None:
        """Keep the device from changing weights, averages or optimizer state before they are copied."""
        if self.background is not None:
            self.background.wait_for_copy()

    def has_failed(self) -> bool:
        """Whether this rank knows that a checkpoint was not written. Never waits."""
        return self.background is not None and self.background.poll() is not None

    def raise_failure(self) -> None:
        """Raise, on all ranks, what prevented a checkpoint. All ranks call this together."""
        failure = distributed.broadcast_from_main(self.background.failure if self.background is not None else None)
        if failure is not None:
            raise failure

    def finish(self) -> None:
        """Wait until the last checkpoint is committed, or raise what prevented it. All ranks call this together."""
        if self.background is not None:
            self.background.finish()
        self.raise_failure()

    def close(self) -> None:
        """Wait until the last checkpoint is committed, and free memory and process."""
        self._hook.remove()  # it holds the optimizer, which would otherwise live until the garbage is collected
        if self.background is not None:
            self.background.close()

    def _state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "trained": self.average.unaveraged_weights()}


def restore(saved: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> Progress:
    """Load a checkpoint into the model, its average and the optimizer. All ranks call this together.

    Rank 0 verifies the files. Every rank then maps them, which takes no memory of its own: the ranks of a machine share
    the pages that rank 0 has read. Nothing of the files is kept.
    """
    damage = None
    if distributed.is_main():
        try:
            saved.verify()
        except InputError as error:
            damage = error
    if (damage := distributed.broadcast_from_main(damage)) is not None:
        raise damage
    weights, state = saved.map_weights(), saved.map_state()
    load_weights(model, weights | state["trained"])
    average.load(weights)
    optimizer.load_state_dict(state["optimizer"])
    return Progress(saved.step, saved.step, **{name: state[name] for name in KEPT})
