"""Cross entropy over a large vocabulary without ever holding all logits."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100


def cross_entropy(logits: Float[Tensor, "tokens vocabulary"], labels: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """-log softmax(logits)[label] in float32; 0 where the label is -100."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)


def chunked_cross_entropy(
    hidden: Float[Tensor, "tokens width"],
    labels: Int[Tensor, "tokens"],
    project: Callable[[Tensor], Tensor],
    chunk: int,
    cross_entropy: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Float[Tensor, "tokens"]:
    """-log softmax(project(hidden))[label] for each token in float32; 0 where the label is -100.

    `chunk` tokens at a time: the largest tensor is chunk x vocabulary. The logits of the last chunk are kept for the
    backward pass, which begins with them; those of the others are computed again. `project` is called as a module, so
    that sharded weights are gathered. `cross_entropy` may be a compiled one.
    """

    def losses(part: Tensor, part_labels: Tensor) -> Tensor:
        # Labels of their own, no view: compiled code would be made again whenever the length of the whole changes.
        return cross_entropy(project(part), part_labels.clone())

    *others, last = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([*(checkpoint(losses, *part, use_reentrant=False) for part in others), losses(*last)])
