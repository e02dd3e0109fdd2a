"""Padding of weight matrices to widths that a GPU multiplies fast."""

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import pad

PADDED = re.compile(r"model\.visual\.blocks\.\d+\.mlp\.((gate|up)_proj\.|(?P<columns>down_proj\.weight$))")
"""The weights that are padded, by their stock names: rows, or columns."""


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


def cut_vision_mlp(weights: Mapping[str, Tensor], width: int, multiple: int) -> dict[str, Tensor]:
    """Undo `pad_vision_mlp` in weights by their stock names: give the vision tower's MLPs their own `width` back.

    Weights of another width than the padded one stay as they are.
    """
    padded = width + -width % multiple
    return {name: _cut(name, tensor, width, padded) for name, tensor in weights.items()}


def _cut(name: str, tensor: Tensor, width: int, padded: int) -> Tensor:
    found = PADDED.match(name)
    dim = 1 if found and found["columns"] else 0
    if not found or width == padded or tensor.shape[dim] != padded:
        return tensor
    kept, added = tensor.split([width, padded - width], dim)
    assert not added.any(), f"{name}: its padding is not zero"
    return kept.contiguous()
