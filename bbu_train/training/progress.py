"""How far a run has got, and how a checkpoint keeps it."""

from dataclasses import dataclass, field

import torch
from torch import nn

from bbu_train.checkpoint.load import load_weights
from bbu_train.checkpoint.local import Checkpoint, LocalCheckpoints
from bbu_train.runtime import distributed
from bbu_train.training.protocols import Average


@dataclass
class Progress:
    """Steps made, the step of the newest checkpoint, and the metrics of the last evaluation and its step."""

    step: int
    saved_at: int
    metrics: dict[str, float] = field(default_factory=dict)
    evaluated_at: int | None = None


def save(progress: Progress, checkpoints: LocalCheckpoints, optimizer: torch.optim.Optimizer, average: Average) -> None:
    """Write a checkpoint of the present step on rank 0. All ranks call this and go on together."""
    if distributed.is_main():
        state = {
            "optimizer": optimizer.state_dict(),
            "trained": average.unaveraged_weights(),
            "metrics": progress.metrics,
            "evaluated_at": progress.evaluated_at,
        }
        metrics = progress.metrics if progress.evaluated_at == progress.step else {}
        checkpoints.save(progress.step, average.weights(), state, metrics)
    progress.saved_at = progress.step
    distributed.barrier()


def restore(saved: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> Progress:
    """Load a checkpoint into the model, its average and the optimizer."""
    weights, state = saved.weights(), saved.state()
    load_weights(model, weights | state["trained"])
    average.load(weights)
    optimizer.load_state_dict(state["optimizer"])
    return Progress(saved.step, saved.step, state["metrics"], state["evaluated_at"])
