"""The checks of a whole sweep before its first run starts. Torch stays out of this process.

Composing the cells (cells.py) has checked their configs. Here: model weights exist; then one child process that imports
torch checks the values of each config, the data of each data config and the parameter groups of each model, head and
optimizer, computes what a training step requires, and counts the steps of runs whose epochs are given (child.py).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import Any

from bbu_train.errors import InputError, all_problems
from bbu_train.model import weights
from bbu_train.runs import config_keys
from bbu_train.runs import folder as run_folder
from bbu_train.runs.length import EPOCHS, decided_by_epochs, shorten_warmup
from bbu_train.runtime import preemption
from bbu_train.runtime.nested import leaves
from launchers.cells import Cell

DATA_KEYS = (
    "data",
    "augmentation",
    "conversation",
    "collator",
    "sampler",
    "model.preprocessing",
    "head.num_queries",
    "loss._target_",
    "engine.num_micro_batches",
    "cluster.nodes",
    "cluster.tasks_per_node",
    "checkpoint.best_metric",
    "stopping",
)
GROUP_KEYS = ("model", "head", "optimizer")
NO_VALUE_KEYS = ("about", "folder", "optimizer", "outputs", "resume", "run", "sweep", "tracker")
"""What the check of single values does not read: they are checked elsewhere."""
SEED_KEYS = (
    "data.teachers.seed",
    "augmentation.seed",
    "sampler.seed",
)  # ignored to save time: with another seed a conversation may still be too long, which the run itself reports


class CheckAborted(InputError):
    """The check itself did not finish, which says nothing about the cells."""


def check_cells(
    cells: Sequence[Cell], groups_without_estimate: Sequence[Sequence[int]], known_steps: dict[str, int]
) -> dict[int, dict[str, float]]:
    """Raise one InputError that names every problem, each with the cells that have it.

    Without problems, return {cell number: requirements of a training step} (see `child.compute_requirements`) for all
    cells in `groups_without_estimate`. These are groups of cell numbers; the cells of a group have equal requirements,
    so they are computed once. `known_steps` gets what `with_steps` reads.
    """
    for checkpoint, kind in sorted({(cell.cfg.model.checkpoint, cell.cfg.model.weights) for cell in cells}, key=str):
        if checkpoint is not None:
            weights.require(checkpoint, kind)
    answers = _run_checks(
        cells,
        {"values": group_by_values(cells), **group_for_checks(cells), "requirements": groups_without_estimate},
        known_steps,
    )
    required = [answer for answer in answers if "requirements" in answer]
    return {number: answer["requirements"] for answer in required for number in answer["cells"]}


def group_for_checks(cells: Sequence[Cell]) -> dict[str, list[list[int]]]:
    """Return groups of cell numbers for each check. A group's cells are equal for it, so only the first is checked."""
    configs = [cell.values for cell in cells]
    return {"data": _group_equal(configs, DATA_KEYS), "parameter_groups": _group_equal(configs, GROUP_KEYS)}


def group_by_values(cells: Sequence[Cell]) -> list[list[int]]:
    """Return the groups of the check of single values. It takes milliseconds, so every cell of a sweep has it.

    A trial of a search has new values each time, and a process for its check alone would take seconds: its run refuses
    them itself, before its model loads.
    """
    keys = [str(key) for key in cells[0].values if key not in NO_VALUE_KEYS]
    return _group_equal([cell.values for cell in cells], keys)


def with_steps(cell: Cell, known_steps: dict[str, int]) -> Cell:
    """Return the cell with the number of steps of its epochs in `cfg.steps`; a cell without epochs as it is.

    `known_steps` has the numbers that were counted before, and gets this one. Raises InputError as `check_cells`.
    """
    if not decided_by_epochs(cell.cfg):
        return cell
    key = _steps_key(cell)
    if key not in known_steps:
        _run_checks([cell], {}, known_steps)
    cfg = cell.cfg.copy()
    cfg.steps = known_steps[key]
    shorten_warmup(cfg, [override.key_or_group for override in config_keys.parse(cell.overrides)])
    return replace(cell, cfg=cfg)


def _steps_key(cell: Cell) -> str:
    """Return a text that is equal for cells whose epochs have equal steps. What is too long varies with seeds."""
    return _shared_values(cell.values, (*DATA_KEYS, EPOCHS), ())


def _run_checks(
    cells: Sequence[Cell], checks: Mapping[str, Sequence[Sequence[int]]], known_steps: dict[str, int]
) -> list[dict[str, Any]]:
    """Return the answers to `checks`; without a problem, `known_steps` then has the steps of all cells with epochs."""
    uncounted: dict[str, list[int]] = {}
    for number, cell in enumerate(cells):
        if decided_by_epochs(cell.cfg) and (key := _steps_key(cell)) not in known_steps:
            uncounted.setdefault(key, []).append(number)
    answers = _run_child(cells, {**checks, "num_steps": [*uncounted.values()]})
    problems = [
        indent(f"{_name_cells(cells, answer['cells'])}: {answer['problem']}", "    ").strip()
        for answer in answers
        if "problem" in answer
    ]
    if problems:
        raise all_problems("The sweep", problems, "Nothing was started.")
    counted = [answer for answer in answers if "num_steps" in answer]
    known_steps |= {_steps_key(cells[answer["cells"][0]]): answer["num_steps"] for answer in counted}
    return answers


def _group_equal(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[int]]:
    """Return the numbers of the configs, grouped by what they have under `keys`, seeds aside."""
    groups: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        groups.setdefault(_shared_values(config, keys, (*SEED_KEYS, "checkpoint.folder")), []).append(number)
    return list(groups.values())


def _shared_values(config: Mapping[str, Any], keys: Sequence[str], ignored: Sequence[str]) -> str:
    """Return a text that is equal for configs with the same values under `keys`."""
    values = {
        key: _simplify_rate(key, value)
        for key, value in leaves(config)
        if any(key == owner or key.startswith(f"{owner}.") for owner in keys) and key not in ignored
    }
    return json.dumps(values, sort_keys=True, default=str)


def _simplify_rate(key: str, value: Any) -> Any:
    """Replace a valid learning rate by "positive": 0 freezes a group, and all positive rates pass or fail alike."""
    is_rate = key.endswith(".lr") or key.startswith("model.learning_rates.")
    return "positive" if is_rate and isinstance(value, int | float) and 0 < value < float("inf") else value


def _run_child(cells: Sequence[Cell], checks: Mapping[str, Sequence[Sequence[int]]]) -> list[dict[str, Any]]:
    """Return the child's answers, each with the numbers of its cells."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for check, groups in checks.items():
            for numbers in groups:
                path = Path(folder) / f"{check}-{numbers[0]}.yaml"
                path.write_text(run_folder.as_yaml(cells[numbers[0]].cfg), encoding="utf-8")
                tasks.append({"check": check, "config": str(path), "cells": numbers})
        child = subprocess.run(
            [sys.executable, "-m", "launchers.preflight.child"],
            input=json.dumps(tasks),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if child.returncode != 0:
        preemption.end_sweep_if_asked()  # a signal to this process often reaches the child too
        raise CheckAborted(
            f"The sweep could not be checked (exit code {child.returncode}; see above). Nothing was started."
        )
    return [json.loads(line) for line in child.stdout.splitlines()]


def _name_cells(cells: Sequence[Cell], numbers: Sequence[int]) -> str:
    """Name the first of these cells by the overrides that not every cell has, and count the others."""
    shared = set.intersection(*(set(cell.overrides) for cell in cells))
    own = " ".join(text for text in cells[numbers[0]].overrides if text not in shared) or "every cell"
    return own if len(numbers) == 1 else f"{own} and {len(numbers) - 1} more cells"
