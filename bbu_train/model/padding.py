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


def cut_vision_mlp(weights: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Undo `pad_vision_mlp` in weights by their stock names: give the vision tower's MLPs their own `width` back.

    Weights of a smaller width, and larger ones whose rest is not zero, stay as they are: they are of another model.
    """
    return {
        name: tensor if (dim := _padded_dim(name)) is None else _cut(tensor, width, dim)
        for name, tensor in weights.items()
    }


def pad_like(weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Pad the vision tower's MLPs of this `width`, by their stock names, to the widths that `parameters` have."""
    return {
        name: tensor
        if (dim := _padded_dim(name)) is None or tensor.shape[dim] != width or name not in parameters
        else _pad(tensor, parameters[name].shape[dim], dim)
        for name, tensor in weights.items()
    }


def _padded_dim(name: str) -> int | None:
    """Return the dimension along which `pad_vision_mlp` widens the weight of this name, if it does."""
    found = PADDED.match(name)
    return None if found is None else 1 if found["columns"] else 0


def _cut(tensor: Tensor, width: int, dim: int) -> Tensor:
    kept, added = tensor.tensor_split([width], dim)
    return tensor if added.any() else kept.contiguous()


def _pad(tensor: Tensor, width: int, dim: int) -> Tensor:
    num_new = width - tensor.shape[dim]
    return pad(tensor, (0, num_new) if dim == tensor.ndim - 1 else (0, 0, 0, num_new))
