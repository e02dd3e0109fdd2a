"""What is checked of a whole sweep before the first of its runs is started. Torch stays out of this process.

Every cell has composed (cells.py). Here: the weights are there; then, in one child process that imports torch, the data
of each data config, the groups of parameters of each model, head and optimizer, and what a step takes (estimate.py).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from bbu_train.errors import InputError, all_problems
from bbu_train.model import weights
from bbu_train.runs import config_keys
from bbu_train.runs import folder as run_folder
from bbu_train.runtime import preemption
from launchers.cells import Cell

DATA = ("data", "augmentation", "conversation", "collator", "sampler", "model.preprocessing", "head.num_queries")
GROUPS = ("model", "head", "optimizer")
# What is wrong with data is wrong whatever is drawn from it.
SEEDS = ("data.teachers.seed", "augmentation.seed", "sampler.seed")


class NotChecked(InputError):
    """The check itself came to no end, which says nothing of the cells."""


def check(cells: Sequence[Cell], unmeasured: Sequence[Sequence[int]]) -> dict[int, dict[str, float]]:
    """Raise one InputError that names all that is wrong, each problem with the cells that have it.

    If nothing is: what a step of the unmeasured cells takes (`built.needs`), by their numbers, which are put together
    where that is the same.
    """
    for checkpoint, kind in sorted({(cell.cfg.model.checkpoint, cell.cfg.model.weights) for cell in cells}, key=str):
        if checkpoint is not None:
            weights.require(checkpoint, kind)
    answers = _asked_child(cells, {**tasks(cells), "needs": unmeasured})
    problems = [
        indent(f"{_named(cells, its['cells'])}: {its['problem']}", "    ").strip()
        for its in answers
        if "problem" in its
    ]
    if problems:
        raise all_problems("The sweep", problems, "Nothing was started.")
    return {number: its["needs"] for its in answers for number in its["cells"]}


def tasks(cells: Sequence[Cell]) -> dict[str, list[list[int]]]:
    """What is to be checked, and for each the numbers of the cells of which one stands for all."""
    resolved = [cell.values for cell in cells]
    return {"data": _alike(resolved, DATA), "groups": _alike(resolved, GROUPS)}


def _alike(resolved: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> list[list[int]]:
    """The numbers of the cells, put together where they agree in these parts of the config."""
    alike: dict[str, list[int]] = {}
    for number, values in enumerate(resolved):
        leaves = {
            key: _rate(key, value)
            for key, value in config_keys.leaves(values)
            if any(key == part or key.startswith(f"{part}.") for part in parts) and key not in SEEDS
        }
        alike.setdefault(json.dumps(leaves, sort_keys=True, default=str), []).append(number)
    return list(alike.values())


def _rate(key: str, value: Any) -> Any:
    """Of a learning rate only whether it is positive matters: 0 freezes a group, and all else is refused."""
    is_rate = key.endswith(".lr") or key.startswith("model.learning_rates.")
    return "positive" if is_rate and isinstance(value, int | float) and 0 < value < float("inf") else value


def _asked_child(cells: Sequence[Cell], work: Mapping[str, Sequence[Sequence[int]]]) -> list[dict[str, Any]]:
    """What the child answers, each time with the numbers of the cells."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for what, groups in work.items():
            for numbers in groups:
                path = Path(folder) / f"{what}-{numbers[0]}.yaml"
                path.write_text(run_folder.as_yaml(cells[numbers[0]].cfg), encoding="utf-8")
                tasks.append({"what": what, "config": str(path), "cells": numbers})
        done = subprocess.run(
            [sys.executable, "-m", "launchers.preflight.child"],
            input=json.dumps(tasks),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        preemption.end_sweep_if_asked()  # a signal to this process often goes to the child too
        raise NotChecked(
            f"The sweep could not be checked (exit code {done.returncode}; see above). Nothing was started."
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _named(cells: Sequence[Cell], numbers: Sequence[int]) -> str:
    """The first of these cells, by what not every cell has, and how many more there are."""
    shared = set.intersection(*(set(cell.overrides) for cell in cells))
    own = " ".join(text for text in cells[numbers[0]].overrides if text not in shared) or "every cell"
    return own if len(numbers) == 1 else f"{own} and {len(numbers) - 1} more cells"
