"""AdamW over named parameter groups."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from bbu_train.optimizer.groups import make_param_groups
from bbu_train.optimizer.mixed_adamw import MixedAdamW


def build(
    model: nn.Module,
    groups: dict[str, dict[str, Any]],
    *,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    precision: str,
) -> MixedAdamW:
    """Freeze the groups with rate 0 and build AdamW over the others.

    `groups` is described in `make_param_groups`. `precision` is the engine's: with "bf16" every bfloat16 parameter has
    a float32 master, with "pure_bf16" none has.
    """
    param_groups = make_param_groups(model, groups, betas, eps, weight_decay)
    return MixedAdamW(param_groups, has_masters=precision != "pure_bf16", betas=(betas[0], betas[1]), eps=eps)
