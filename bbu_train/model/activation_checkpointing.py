"""What a block computes again in the backward pass instead of keeping it."""

from functools import partial

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from bbu_train.errors import InputError

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)


def enable(backbone: PreTrainedModel, choice: str) -> None:
    """full keeps each block's input alone; selective keeps the results of what is expensive, too.

    Expensive are matrix products and attention: with them kept, norms, rotations and activations are computed again
    for next to nothing, most of all in compiled blocks, where they are part of the kernels that read them.
    """
    if choice not in ("selective", "full"):
        raise InputError(f"engine.gradient_checkpointing={choice} is unknown; take none, selective or full.")
    settings = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout
    if choice == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    backbone.activation_checkpointing_enable(settings)
    # Only the reentrant kind needs embeddings with a gradient, for which a frozen vision tower would be run backwards.
    backbone.disable_input_require_grads()


def _policy(_, operator, *args, **kwargs) -> CheckpointPolicy:
    # Attention is torch's own, or an operator of another package.
    is_attention = "attention" in operator.name() or operator.namespace not in ("aten", "prims")
    keep = is_attention or operator.overloadpacket in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
