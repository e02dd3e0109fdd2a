"""What a checkpoint can keep."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor


def check_weights(weights: dict[str, Tensor]) -> None:
    """Check that no tensor is passed under two names, which safetensors refuses."""
    first_names: dict[tuple[torch.device, int], str] = {}
    for name, tensor in weights.items():
        if tensor.numel():
            first = first_names.setdefault((tensor.device, tensor.data_ptr()), name)
            assert first == name, f"{first} and {name} are one tensor under two names: pass tied parameters once"


def check_state(value: Any, where: str) -> None:
    """Check that `torch.load(weights_only=True)` will accept `value`: fail when it is saved, not when it is needed."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            assert type(key) in (str, int), f"{where} has the key {key!r}: keys are strings or integers"
            check_state(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for position, item in enumerate(value):
            check_state(item, f"{where}[{position}]")
    else:
        is_loadable = isinstance(value, Tensor) or type(value) in (int, float, bool, str, type(None))
        assert is_loadable, (
            f"{where} is a {type(value).__name__}: expected dicts, lists, tensors, numbers, strings or None"
        )
