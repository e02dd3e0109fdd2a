"""The parts of a head that stay at their random weights.

Without trained boxes and scores the head is not scored. With random descriptions, only metrics that ignore classes are
logged. A warning says so.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from bbu_train.errors import InputError
from bbu_train.training.protocols import Criterion


class Part(NamedTuple):
    """A part of every head: what it predicts, its module, and the losses of `Criterion.weights` that train it."""

    predicts: str
    module: str
    losses: tuple[str, ...]


PARTS = (
    Part("boxes", "box", ("bbox_l1", "bbox_giou")),
    Part("scores", "objectness", ("objectness",)),
    Part("descriptions", "captioner", ("caption",)),
)


BOX_LOSSES = PARTS[0].losses
SCORED = {"boxes", "scores"}  # what every metric needs


def untrained_parts(head: nn.Module | None, criterion: Criterion) -> dict[str, str]:
    """Return, for each of boxes, scores and descriptions that stays random, why it does.

    Call this after the optimizer was built, which freezes the groups with a rate of 0. A head always starts from random
    weights, so a frozen part has never learned.
    """
    reasons = {}
    for part in PARTS if head is not None else ():
        if not any(criterion.weights.get(loss, 0) > 0 for loss in part.losses):
            reasons[part.predicts] = "its losses have weight 0"
        elif _is_frozen(getattr(head, part.module)):
            reasons[part.predicts] = "it is frozen at its random weights (its learning rate is 0)"
    return reasons


def is_scored(head: nn.Module | None, criterion: Criterion) -> bool:
    """Return whether the head's predictions can be scored: every metric needs trained boxes and scores."""
    return head is not None and SCORED.isdisjoint(untrained_parts(head, criterion))


def warnings(model: nn.Module, criterion: Criterion) -> Iterator[str]:
    """Yield what the user must know of parts that stay random, at the start of a run."""
    for predicts, reason in untrained_parts(model.head, criterion).items():
        effect = "the head is not scored" if predicts in SCORED else "only metrics that ignore classes are logged"
        yield f"The head's part that predicts {predicts} stays random, because {reason}: {effect}."
    backbone_trains = any(parameter.requires_grad for parameter in model.backbone.parameters())
    for part in PARTS if model.head is not None and backbone_trains else ():
        weighted = [loss for loss in part.losses if criterion.weights.get(loss, 0) > 0]
        if weighted and _is_frozen(getattr(model.head, part.module)):
            yield (
                f"The losses {', '.join(weighted)} of the frozen random part that predicts {part.predicts} still train "
                "the vision tower and the language model. Set their loss.weights to 0 to keep them out."
            )


def refuse_untrained(head: nn.Module | None, criterion: Criterion, folder: str) -> None:
    """Raise InputError if the head of the run in `folder` cannot be scored."""
    if not is_scored(head, criterion):
        predicts, reason = next(iter(untrained_parts(head, criterion).items()))
        raise InputError(
            f"The head of the run in {folder} was never trained: the part that predicts {predicts} stayed random, "
            f"because {reason}. Take route='generated'."
        )


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())
