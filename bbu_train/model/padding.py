"""Padding of weight matrices to widths that a GPU multiplies fast."""

from torch import nn
from torch.nn.functional import pad


def pad_vision_mlp(visual: nn.Module, multiple: int) -> None:
    """Widen the vision tower's MLPs with zeros to a multiple of `multiple`. Their outputs stay the same.

    Their width is 3420, which is not a multiple of 8, and for such widths a GPU uses a slow bfloat16 kernel. A new unit
    computes silu(0) * 0 = 0 and its outgoing weights are zero, so its gradients are zero too and it never changes.
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
