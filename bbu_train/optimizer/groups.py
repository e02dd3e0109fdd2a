"""Named groups of parameters, each with a rate of its own, and AdamW over them.

The groups are ordered, and a parameter belongs to the first whose pattern is found in its name. Every parameter has to
belong to one, and every group has to match something, so that no rate of a sweep is without effect unnoticed.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bbu_train.errors import InputError, all_problems
from bbu_train.ops.numbers import is_number
from bbu_train.optimizer.mixed_adamw import MixedAdamW

KEYS = ("pattern", "submodule", "lr")
NUM_NAMES_SHOWN = 10


def build(
    model: nn.Module,
    groups: dict[str, dict[str, Any]],
    *,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    precision: str,
) -> torch.optim.AdamW:
    """Freeze the groups of rate 0 and give the others to AdamW.

    `groups` is that of `torch_groups`. `precision` is the engine's: with "bf16" bfloat16 parameters get float32
    masters, with "pure_bf16" none.
    """
    its_groups = torch_groups(model, groups, betas, eps, weight_decay)
    # Either clips and refuses on the device, as it updates (engine/plain.py).
    if precision == "fp32":
        return torch.optim.AdamW(its_groups, betas=tuple(betas), eps=eps, fused=True)
    return MixedAdamW(its_groups, masters=precision == "bf16", betas=tuple(betas), eps=eps)


def torch_groups(
    model: nn.Module, groups: dict[str, dict[str, Any]], betas: Sequence[float], eps: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Freeze the groups of rate 0, and give the others as torch's optimizers take them.

    `groups` maps a name to `pattern` (found anywhere in the parameter's name), `submodule` (a submodule of the model: where
    the model has none of that name, or None, the group may stay empty) and `lr`. A tied parameter has several names;
    each counts as matched, and it belongs to the group of the first, in the model's order, that has one.

    Decay applies to matrices only (norms and biases have fewer than 2 dimensions), so a named group becomes up to two
    of torch's, with "name", "decays" and "initial_lr" in each. What the model itself froze stays frozen, and is left
    out. All that is wrong raises one InputError, before anything is frozen.
    """
    problems = [*_wrong_numbers(betas, eps, weight_decay), *_wrong_groups(groups)]
    if not problems:
        members, problems = _assign(model, groups)
    if problems:
        remedy = "Mend it in conf/optimizer/adamw.yaml, or in the choice that you named, or by an override."
        raise all_problems("optimizer", problems, remedy)
    its_groups = []
    for name, parameters in members.items():
        rate = float(groups[name]["lr"])
        if rate == 0:
            _freeze(parameters)
        for decays in (True, False):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim >= 2) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                settings = {"lr": rate, "initial_lr": rate, "weight_decay": decay, "name": name, "decays": decays}
                its_groups.append({"params": chosen, **settings})
    if not its_groups:
        raise InputError("optimizer: every parameter is frozen. Give at least one group an lr above 0.")
    return its_groups


def set_learning_rates(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The present rate of each group that is not frozen."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def parameters_by_group(optimizer: torch.optim.Optimizer) -> dict[str, list[nn.Parameter]]:
    members: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        members.setdefault(group["name"], []).extend(group["params"])
    return members


def state_bytes(optimizer: torch.optim.AdamW) -> int:
    """Bytes of moments and of what masters have beside the weights, which the optimizer makes at its first step."""

    def bytes_of(parameter: nn.Parameter, num_moments: int) -> int:
        if isinstance(optimizer, MixedAdamW) and parameter.dtype == torch.bfloat16:
            return parameter.numel() * (4 * num_moments + 2 if optimizer.masters else 2 * num_moments)
        return num_moments * parameter.nbytes

    # A group with "momentum" is Muon's, which keeps one moment.
    sizes = ((p, 1 if "momentum" in group else 2) for group in optimizer.param_groups for p in group["params"])
    return sum(bytes_of(parameter, num_moments) for parameter, num_moments in sizes)


def _freeze(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def _assign(model: nn.Module, groups: dict[str, dict[str, Any]]) -> tuple[dict[str, list[nn.Parameter]], list[str]]:
    """The parameters of each group, and what is wrong with the assignment."""
    group_of_name = {}
    group_of_parameter: dict[nn.Parameter, str] = {}
    names: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, name)
        found = next((group for group, its in groups.items() if re.search(its["pattern"], name)), None)
        group_of_name[name] = found
        if found is not None:
            group_of_parameter.setdefault(parameter, found)
    homeless = [name for parameter, name in names.items() if parameter not in group_of_parameter]
    problems = [_homeless_problem(homeless)] if homeless else []
    for group, its in groups.items():
        if getattr(model, its["submodule"], None) is not None and group not in group_of_name.values():
            problems.append(_empty_problem(group, its["pattern"], group_of_name))
    members = {group: [p for p, its_group in group_of_parameter.items() if its_group == group] for group in groups}
    return members, problems


def _homeless_problem(names: list[str]) -> str:
    count = "1 parameter belongs" if len(names) == 1 else f"{len(names)} parameters belong"
    shown = ", ".join(names[:NUM_NAMES_SHOWN])
    more = f" and {len(names) - NUM_NAMES_SHOWN} more" if len(names) > NUM_NAMES_SHOWN else ""
    return f"{count} to no group: {shown}{more}. Add a group, or widen a pattern; lr 0 freezes a group"


def _empty_problem(group: str, pattern: str, group_of_name: dict[str, str | None]) -> str:
    takers = Counter(taker for name, taker in group_of_name.items() if re.search(pattern, name))
    if not takers:
        return f'group {group} matches nothing: no parameter has "{pattern}" in its name'
    who = ", ".join(f"{taker} ({number})" for taker, number in takers.items())
    return (
        f'group {group} gets nothing: all that "{pattern}" matches went to groups before it: {who}. The first pattern '
        f"that matches wins, and a group added on the command line comes last: write {group} above them in a YAML"
    )


def _wrong_groups(groups: dict[str, dict[str, Any]]) -> list[str]:
    problems = []
    for name, its in groups.items():
        if not isinstance(its, dict) or set(its) != set(KEYS):
            problems.append(f"group {name} is {its}: expected exactly the keys {', '.join(KEYS)}")
            continue
        if not is_number(its["lr"]) or its["lr"] < 0:
            problems.append(f"group {name} has lr {its['lr']}: expected a finite number, 0 (frozen) or above")
        if not isinstance(its["submodule"], str):
            problems.append(
                f"group {name} has submodule {its['submodule']}: expected the name of a submodule, such as head"
            )
        try:
            re.compile(its["pattern"])
        except (re.error, TypeError) as error:
            problems.append(f'group {name} has pattern "{its["pattern"]}": not a regular expression ({error})')
    return problems


def _wrong_numbers(betas: Sequence[float], eps: float, weight_decay: float) -> list[str]:
    problems = []
    if len(betas) != 2 or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
        problems.append(f"betas are {list(betas)}: expected two numbers from 0 to below 1")
    if not is_number(eps) or eps <= 0:
        problems.append(f"eps is {eps}: expected a number above 0")
    if not is_number(weight_decay) or weight_decay < 0:
        problems.append(f"weight_decay is {weight_decay}: expected a number, 0 or above")
    return problems
