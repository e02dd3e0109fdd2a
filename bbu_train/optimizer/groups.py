"""Named groups of parameters, each with its own learning rate.

The groups are ordered: a parameter belongs to the first group whose pattern is found in its name. Every parameter must
belong to a group and every group must match something, so that a sweep cannot vary a rate that has no effect.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bbu_train.errors import InputError, all_problems, listed
from bbu_train.ops.numbers import is_number
from bbu_train.optimizer.mixed_adamw import MixedAdamW

KEYS = ("pattern", "submodule", "lr")


def make_param_groups(
    model: nn.Module, groups: dict[str, dict[str, Any]], betas: Sequence[float], eps: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Freeze the groups with rate 0 and return the others as torch's `param_groups`.

    `groups` maps a group's name to three keys: `pattern`, a regular expression that is searched in parameter names;
    `submodule`, a part of the model (if the model lacks it or has None there, the group may be empty); and `lr`.

    A tied parameter has several names. The first of them, in the model's order, that any pattern matches decides its
    group. A group whose pattern matches only a later name has no parameter then, but that is no error.

    Weight decay applies to matrices only (norms and biases have fewer than 2 dimensions), so one named group becomes up
    to two param groups, each with the keys "name", "decays" and "initial_lr". Parameters that the model itself froze
    stay frozen and are left out. All problems are raised in one InputError, before anything is frozen.
    """
    problems = [*_check_numbers(betas, eps, weight_decay), *_check_groups(groups)]
    members: dict[str, list[nn.Parameter]] = {}
    if not problems:
        members, problems = _assign(model, groups)
    if problems:
        remedy = "Fix it in conf/optimizer/adamw.yaml, in the file of the optimizer you chose, or by an override."
        raise all_problems("optimizer", problems, remedy)
    param_groups = []
    for name, parameters in members.items():
        rate = float(groups[name]["lr"])
        if rate == 0:
            _freeze(parameters)
        for decays in (True, False):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim >= 2) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                settings = {"lr": rate, "initial_lr": rate, "weight_decay": decay, "name": name, "decays": decays}
                param_groups.append({"params": chosen, **settings})
    if not param_groups:
        raise InputError("optimizer: every parameter is frozen. Give at least one group an lr above 0.")
    return param_groups


def set_learning_rates(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Set each group's rate to its initial rate times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the current rate of each group that is not frozen."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def members_by_group(model: nn.Module, groups: dict[str, dict[str, Any]]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each group of `make_param_groups`, frozen ones too."""
    return _assign(model, groups)[0]


def parameters_by_group(optimizer: torch.optim.Optimizer) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each named group, those with and without weight decay together."""
    members: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        members.setdefault(group["name"], []).extend(group["params"])
    return members


def state_bytes(optimizer: MixedAdamW) -> int:
    """Return the bytes of moments and of the masters' low bits, which `allocate` takes."""

    def bytes_of(parameter: nn.Parameter, num_moments: int) -> int:
        if parameter.dtype == torch.bfloat16:
            return parameter.numel() * (4 * num_moments + 2 if optimizer.has_masters else 2 * num_moments)
        return num_moments * parameter.nbytes

    # A group with "momentum" belongs to Muon, which keeps one moment.
    sizes = ((p, 1 if "momentum" in group else 2) for group in optimizer.param_groups for p in group["params"])
    return sum(bytes_of(parameter, num_moments) for parameter, num_moments in sizes)


def _freeze(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def _assign(model: nn.Module, groups: dict[str, dict[str, Any]]) -> tuple[dict[str, list[nn.Parameter]], list[str]]:
    """Return the parameters of each group, and the problems of the assignment."""
    group_of_name: dict[str, str | None] = {}
    group_of_parameter: dict[nn.Parameter, str] = {}
    first_names: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first_names.setdefault(parameter, name)
        first_match = next((group for group, config in groups.items() if re.search(config["pattern"], name)), None)
        group_of_name[name] = first_match
        if first_match is not None:
            group_of_parameter.setdefault(parameter, first_match)
    unassigned = [name for parameter, name in first_names.items() if parameter not in group_of_parameter]
    problems = [_describe_unassigned(unassigned)] if unassigned else []
    for group, config in groups.items():
        if getattr(model, config["submodule"], None) is not None and group not in group_of_name.values():
            problems.append(_describe_empty_group(group, config["pattern"], group_of_name))
    members = {name: [p for p, group in group_of_parameter.items() if group == name] for name in groups}
    return members, problems


def _describe_unassigned(names: list[str]) -> str:
    count = "1 parameter belongs" if len(names) == 1 else f"{len(names)} parameters belong"
    return f"{count} to no group: {listed(names)}. Add a group, or widen a pattern; lr 0 freezes a group"


def _describe_empty_group(name: str, pattern: str, group_of_name: dict[str, str | None]) -> str:
    counts = Counter(group for parameter, group in group_of_name.items() if re.search(pattern, parameter))
    if not counts:
        return f'group {name} matches nothing: no parameter has "{pattern}" in its name'
    takers = ", ".join(f"{group} ({number})" for group, number in counts.items())
    return (
        f'group {name} is empty: every parameter that "{pattern}" matches belongs to an earlier group: {takers}. The '
        f"first matching pattern wins, and a group added on the command line comes last: write {name} above them in a "
        "YAML file"
    )


def _check_groups(groups: dict[str, dict[str, Any]]) -> list[str]:
    problems = []
    for name, config in groups.items():
        if not isinstance(config, dict) or set(config) != set(KEYS):
            problems.append(f"optimizer.groups.{name}={config}: expected exactly the keys {', '.join(KEYS)}")
            continue
        lr, submodule, pattern = config["lr"], config["submodule"], config["pattern"]
        if not is_number(lr) or lr < 0:
            problems.append(f"optimizer.groups.{name}.lr={lr}: expected a finite number, 0 (frozen) or above")
        if not isinstance(submodule, str):
            problems.append(f"optimizer.groups.{name}.submodule={submodule}: expected a submodule's name, such as head")
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            problems.append(f"optimizer.groups.{name}.pattern={pattern}: not a regular expression ({error})")
    return problems


def _check_numbers(betas: Sequence[float], eps: float, weight_decay: float) -> list[str]:
    problems = []
    if len(betas) != 2 or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
        problems.append(f"optimizer.betas={list(betas)}: expected two numbers from 0 to below 1")
    if not is_number(eps) or eps <= 0:
        problems.append(f"optimizer.eps={eps}: expected a number above 0")
    if not is_number(weight_decay) or weight_decay < 0:
        problems.append(f"optimizer.weight_decay={weight_decay}: expected a number, 0 or above")
    return problems
