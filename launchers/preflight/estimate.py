"""Time and memory that a sweep will take.

They come from finished runs of the same shape in the same `outputs`. Without such a run, the time is computed from a
step's FLOPs and `cluster.tflops_per_gpu`, or unknown where that is null; the memory is predicted.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity, settings
from bbu_train.runtime.nested import leaves
from bbu_train.tracker.jsonl import read_rows
from launchers.cells import Cell

MAX_RUNS = 50  # finished runs to read, the newest first
NUM_WARMUP_STEPS = 2  # first steps of a run, which are slower than the others
SEED_KEYS = ("seed", "sampler.seed", "data.teachers.seed", "data.seed", "augmentation.seed")
IGNORED_KEYS = (*SEED_KEYS, "steps", "epochs", "schedule", "average.num_steps", "loss", "model.learning_rates")
CLUSTER_KEYS = ("cluster.partition", "cluster.nodes", "cluster.tasks_per_node", "cluster.gpus_per_node")


@dataclass(frozen=True)
class Estimate:
    """What a run takes: seconds of a typical step (None: unknown), their source, and the predicted memory.

    `memory` is None if the source is a run: then `source` says what that took.
    """

    step_seconds: float | None
    source: str
    memory: str | None


def from_finished_runs(cells: Sequence[Cell]) -> list[Estimate | None]:
    """Return for each cell what the newest finished run of its shape took, or None if there is none."""
    estimates = dict(reversed([*_read_finished_runs(Path(cells[0].cfg.outputs))]))
    return [estimates.get(shape_key(cell.values)) for cell in cells]


def group_without_estimate(cells: Sequence[Cell], estimates: Sequence[Estimate | None]) -> list[list[int]]:
    """Return the numbers of the cells without an estimate, grouped by shape."""
    groups: dict[str, list[int]] = {}
    for number, (cell, estimate) in enumerate(zip(cells, estimates, strict=True)):
        if estimate is None:
            groups.setdefault(shape_key(cell.values), []).append(number)
    return list(groups.values())


def from_requirements(cell: Cell, flops: float, num_bytes: float) -> Estimate:
    """Return the estimate from a step's FLOPs and the bytes of each process (`child.compute_requirements`)."""
    cluster = cell.cfg.cluster
    rate = cluster.tflops_per_gpu
    memory = f"at least {num_bytes / 2**30:.3g} GiB for each process (predicted)"
    work = f"{flops / 1e12:.3g} TFLOP a step"
    if rate is None:
        reason = (
            f"no run of this shape with more than {NUM_WARMUP_STEPS} logged steps has finished in this outputs folder, "
            "and cluster.tflops_per_gpu is null"
        )
        return Estimate(None, f"time unknown ({reason}); {work}", memory)
    seconds = flops / (rate * 1e12 * cluster.nodes * cluster.tasks_per_node)
    return Estimate(seconds, f"(computed from {work} at cluster.tflops_per_gpu={rate:g})", memory)


def format_estimates(cells: Sequence[Cell], estimates: Sequence[Estimate]) -> str:
    """Return a line for each different estimate, with the number of its cells, and one with the total hours."""
    hours_by_estimate: dict[Estimate, list[float]] = {}
    gpu_hours = 0.0
    for cell, estimate in zip(cells, estimates, strict=True):
        hours = (estimate.step_seconds or 0) * cell.cfg.steps / 3600
        hours_by_estimate.setdefault(estimate, []).append(hours)
        gpu_hours += hours * cell.cfg.cluster.nodes * cell.cfg.cluster.gpus_per_node
    lines = []
    for estimate, hours in hours_by_estimate.items():
        memory = f", {estimate.memory}" if estimate.memory else ""
        time = f"{min(hours):.2g} to {max(hours):.2g} h of training steps each " if estimate.step_seconds else ""
        lines.append(f"{len(hours)} run{'s' if len(hours) > 1 else ''}: {time}{estimate.source}{memory}.")
    if gpu_hours or any(map(any, hours_by_estimate.values())):
        total = f"{sum(map(sum, hours_by_estimate.values())):.2g} h of jobs"
        total += f", {gpu_hours:.2g} GPU-hours" if gpu_hours else ""
        is_known = all(estimate.step_seconds is not None for estimate in estimates)
        lines.append(f"Total: {total}{'' if is_known else ', plus the unknown ones'}; evaluations take extra time.")
    return "\n".join(lines)


def shape_key(values: Mapping[str, Any]) -> str:
    """Return a key that is equal for configs whose steps take the same time and memory.

    A learning rate enters the key only as zero (the group is frozen) or not zero.
    """
    kept = {
        key: bool(value) if key.endswith(".lr") else value
        for key, value in leaves(values)
        if key in (*CLUSTER_KEYS, *settings.ROUNDING_ONLY_KEYS, settings.DEVICE)
        or not (identity.is_neutral(key) or key.endswith((".root", ".cache")) or _is_under(key, IGNORED_KEYS))
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _is_under(key: str, owners: Sequence[str]) -> bool:
    return any(key == owner or key.startswith(f"{owner}.") for owner in owners)


def _read_finished_runs(outputs: Path) -> Iterator[tuple[str, Estimate]]:
    """Yield (shape key, estimate) of each finished run, the newest first."""
    logs = sorted(outputs.glob("*/*/metrics.jsonl"), key=lambda path: -path.stat().st_mtime)
    for log in logs[:MAX_RUNS]:
        try:
            values = OmegaConf.to_container(OmegaConf.load(log.parent / run_folder.CONFIG), resolve=True)
            rows = [row for _, row in read_rows(log) if "time/step_seconds" in row]
            if len(rows) > NUM_WARMUP_STEPS and rows[-1]["step"] >= values["steps"]:
                yield shape_key(values), _estimate_from_log(rows, f"{log.parent.parent.name}/{log.parent.name}")
        except (OSError, ValueError, KeyError, TypeError, YAMLError, OmegaConfBaseException):
            continue  # not a run, damaged, or written by another version


def _estimate_from_log(rows: Sequence[Mapping[str, Any]], name: str) -> Estimate:
    seconds = statistics.median(row["time/step_seconds"] for row in rows[NUM_WARMUP_STEPS:])
    gib = max(row.get("memory/peak_gib", 0) for row in rows)
    return Estimate(seconds, f"and {gib:.3g} GiB, as {name} took", None)
