"""Cross entropy over a large vocabulary, without holding all logits at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100


def cross_entropy(logits: Float[Tensor, "tokens vocabulary"], labels: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """Return -log softmax(logits)[label] in float32; 0 where the label is -100."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)


def chunked_cross_entropy(
    hidden: Float[Tensor, "tokens width"],
    labels: Int[Tensor, "tokens"],
    project: Callable[[Tensor], Tensor],
    chunk: int,
    cross_entropy: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Float[Tensor, "tokens"]:
    """Return -log softmax(project(hidden))[label] of each token in float32; 0 where the label is -100.

    Tokens are processed in chunks of `chunk`, so the largest tensor has chunk x vocabulary elements. The backward pass
    begins with the last chunk, so its logits are kept; those of the other chunks are recomputed. `project` must
    call the output module, not multiply by its weight: an engine that shards weights gathers them in that call.
    `cross_entropy` may be a compiled version.
    """

    def losses(chunk_hidden: Tensor, chunk_labels: Tensor) -> Tensor:
        # The labels of a chunk are a view of all labels: without the clone, a compiled `cross_entropy` would be
        # compiled again whenever the number of all tokens changes.
        return cross_entropy(project(chunk_hidden), chunk_labels.clone())

    *others, last = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([*(checkpoint(losses, *part, use_reentrant=False) for part in others), losses(*last)])
