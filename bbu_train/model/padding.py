"""Widths that a GPU multiplies fast."""

from torch import nn
from torch.nn.functional import pad


def pad_vision_mlp(visual: nn.Module, multiple: int) -> None:
    """Widen the vision tower's MLPs with zeros to a multiple of `multiple`; what they compute stays the same.

    Their width, 3420, is not a multiple of 8, for which a GPU falls back to a slow bfloat16 product. A new unit gives
    silu(0) * 0 = 0 and reaches the output through zeros, so its own gradients are zero, and it stays as it is.
    """
    for block in visual.blocks:
        mlp = block.mlp
        num_new = -mlp.gate_proj.out_features % multiple
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight = nn.Parameter(pad(layer.weight.data, (0, 0, 0, num_new)))
            layer.bias = nn.Parameter(pad(layer.bias.data, (0, num_new)))
            layer.out_features += num_new
        mlp.down_proj.weight = nn.Parameter(pad(mlp.down_proj.weight.data, (0, num_new)))
        mlp.down_proj.in_features += num_new
