"""What a sweep will take, judged by finished runs of the same shape beside it; where there are none, by the useful
arithmetic of a step and the rate that the cluster's file gives for a GPU, or it is unknown."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bbu_train.runs import config_keys, identity
from bbu_train.runs import folder as run_folder
from bbu_train.tracker.jsonl import read_rows
from launchers.cells import Cell

NUM_RUNS = 50  # the newest, whose configs and logs are read
NUM_SLOW_STEPS = 2  # at the beginning of a run, which are not like the others
SEEDS = ("seed", "sampler.seed", "data.teachers.seed", "data.seed", "augmentation.seed")
WITHOUT = (*SEEDS, "steps", "schedule", "loss", "model.learning_rates")
PLACES = ("cluster.partition", "cluster.nodes", "cluster.tasks_per_node", "cluster.gpus_per_node")


@dataclass(frozen=True)
class Need:
    """What a run takes: seconds of the usual step (None: unknown), and the rest of the sentence that says so."""

    step_seconds: float | None
    says: str


def measured(cells: Sequence[Cell]) -> list[Need | None]:
    """Of each cell, as a finished run of its shape took; None where there is none."""
    known = dict(reversed([*_finished(Path(cells[0].cfg.outputs))]))
    return [known.get(shape(cell.values)) for cell in cells]


def unmeasured(cells: Sequence[Cell], needs: Sequence[Need | None]) -> list[list[int]]:
    """The numbers of the cells that lack a need, put together where they have one shape."""
    alike: dict[str, list[int]] = {}
    for number, (cell, need) in enumerate(zip(cells, needs, strict=True)):
        if need is None:
            alike.setdefault(shape(cell.values), []).append(number)
    return list(alike.values())


def computed(cell: Cell, operations: float, num_bytes: int) -> Need:
    """From the useful operations of a step and the bytes that each process needs at least (`built.needs`)."""
    cluster = cell.cfg.cluster
    rate = cluster.tflops_per_gpu
    least = f"at least {num_bytes / 2**30:.3g} GiB (weights, gradients, optimizer, average)"
    amount = f"{operations / 1e12:.3g} TFLOP a step"
    if rate is None:
        why = "no run of their shape is done here yet, and cluster.tflops_per_gpu is null"
        return Need(None, f"{least}; {amount}, in a time that is unknown: {why}.")
    seconds = operations / (rate * 1e12 * cluster.nodes * cluster.tasks_per_node)
    return Need(seconds, f"{least}, by {amount} at cluster.tflops_per_gpu={rate:g}.")


def report(cells: Sequence[Cell], needs: Sequence[Need]) -> str:
    """Time and memory of the cells in a few lines, those that are alike in one, with the total in (GPU-)hours."""
    alike: dict[Need, list[float]] = {}
    gpu_hours, is_known = 0.0, all(need.step_seconds is not None for need in needs)
    for cell, need in zip(cells, needs, strict=True):
        hours = (need.step_seconds or 0) * cell.cfg.steps / 3600
        alike.setdefault(need, []).append(hours)
        gpu_hours += hours * cell.cfg.cluster.nodes * cell.cfg.cluster.gpus_per_node
    lines = []
    for need, hours in alike.items():
        time = f"{min(hours):.2g} to {max(hours):.2g} h of training steps each and " if need.step_seconds else ""
        lines.append(f"Expected of {len(hours)} runs: {time}{need.says}")
    if gpu_hours or any(map(any, alike.values())):
        total = f"{sum(map(sum, alike.values())):.2g} h of jobs"
        total += f", {gpu_hours:.2g} GPU-hours" if gpu_hours else ""
        lines.append(f"In all {total}{'' if is_known else ', and what is unknown'}; evaluations come on top.")
    return "\n".join(lines)


def shape(values: Mapping[str, Any]) -> str:
    """What decides how long a step takes and how much memory it needs. Of rates only whether they freeze a group."""
    kept = {
        key: bool(value) if key.endswith(".lr") else value
        for key, value in config_keys.leaves(values)
        if key in PLACES
        or not (identity.is_neutral(key) or key.endswith((".root", ".cache")) or _is_under(key, WITHOUT))
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _is_under(key: str, owners: Sequence[str]) -> bool:
    return any(key == owner or key.startswith(f"{owner}.") for owner in owners)


def _finished(outputs: Path) -> Iterator[tuple[str, Need]]:
    """(shape, what it took) of runs that are done, the newest first."""
    logs = sorted(outputs.glob("*/*/metrics.jsonl"), key=lambda path: -path.stat().st_mtime)
    for log in logs[:NUM_RUNS]:
        try:
            values = OmegaConf.to_container(OmegaConf.load(log.parent / run_folder.CONFIG), resolve=True)
            rows = [row for _, row in read_rows(log) if "time/step_seconds" in row]
            if len(rows) > NUM_SLOW_STEPS and rows[-1]["step"] >= values["steps"]:
                yield shape(values), _took(rows, f"{log.parent.parent.name}/{log.parent.name}")
        except (OSError, ValueError, KeyError, TypeError, YAMLError, OmegaConfBaseException):
            continue  # not a run, or damaged, or of a version of which nothing can be learned


def _took(rows: Sequence[Mapping[str, Any]], name: str) -> Need:
    seconds = statistics.median(row["time/step_seconds"] for row in rows[NUM_SLOW_STEPS:])
    gib = max(row.get("memory/peak_gib", 0) for row in rows)
    return Need(seconds, f"{gib:.3g} GiB, as {name} took.")
