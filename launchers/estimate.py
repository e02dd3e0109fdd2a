"""What a sweep will take, judged by finished runs of the same shape beside it. Where there are none it is unknown:
the process that submits does not see the devices on which a formula would have to rest."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train import override_keys, run_folder, runs
from launchers.cells import Cell

NUM_RUNS = 50  # the newest, whose configs are read
NUM_SLOW_STEPS = 2  # at the beginning of a run, which are not like the others
WITHOUT = ("steps", "seed", "sampler.seed", "data.teachers.seed", "data.seed", "schedule", "loss", "model.rates")
PLACES = ("cluster.partition", "cluster.nodes", "cluster.tasks_per_node", "cluster.gpus_per_node")


@dataclass(frozen=True)
class Measured:
    """A finished run: `<sweep>/<run>`, seconds of the usual step, and the memory of the fullest rank in GiB."""

    name: str
    step_seconds: float
    gib: float


def report(cells: Sequence[Cell]) -> str:
    """Time and memory of the cells in a few lines, those that are alike in one, with the total in (GPU-)hours."""
    known = dict(reversed([*islice(_finished(Path(cells[0].cfg.outputs)), NUM_RUNS)]))
    alike: dict[Measured, list[float]] = {}
    gpu_hours, num_unknown = 0.0, 0
    for cell in cells:
        its = known.get(shape(OmegaConf.to_container(cell.cfg, resolve=True)))
        if its is None:
            num_unknown += 1
            continue
        hours = its.step_seconds * cell.cfg.steps / 3600
        alike.setdefault(its, []).append(hours)
        gpu_hours += hours * cell.cfg.cluster.nodes * cell.cfg.cluster.gpus_per_node
    lines = [
        f"Expected of {len(hours)} runs: {min(hours):.2g} to {max(hours):.2g} h of training steps each and "
        f"{its.gib:.3g} GiB, as {its.name} took."
        for its, hours in alike.items()
    ]
    if num_unknown:
        lines.append(f"Time and memory of {num_unknown} runs are unknown: no run of their shape is done here yet.")
    if alike:
        total = f"{sum(map(sum, alike.values())):.2g} h of jobs"
        total += f", {gpu_hours:.2g} GPU-hours" if gpu_hours else ""
        lines.append(f"In all {total}{', and what is unknown' if num_unknown else ''}; evaluations come on top.")
    return "\n".join(lines)


def shape(values: Mapping[str, Any]) -> str:
    """What decides how long a step takes and how much memory it needs. Of rates only whether they freeze a group."""
    kept = {
        key: bool(value) if key.endswith(".lr") else value
        for key, value in override_keys.leaves(values)
        if key in PLACES or not (runs.is_neutral(key) or key.endswith((".root", ".cache")) or _is_under(key, WITHOUT))
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _is_under(key: str, owners: Sequence[str]) -> bool:
    return any(key == owner or key.startswith(f"{owner}.") for owner in owners)


def _finished(outputs: Path) -> Iterator[tuple[str, Measured]]:
    """(shape, what was measured) of runs that are done, the newest first."""
    logs = sorted(outputs.glob("*/*/metrics.jsonl"), key=lambda path: -path.stat().st_mtime)
    for log in logs:
        try:
            values = OmegaConf.to_container(OmegaConf.load(log.parent / run_folder.CONFIG), resolve=True)
        except (OSError, OmegaConfBaseException):  # not a run, or of a version of which nothing can be learned
            continue
        rows = [row for row in _rows(log) if "time/step_seconds" in row]
        if len(rows) > NUM_SLOW_STEPS and rows[-1]["step"] >= values["steps"]:
            seconds = statistics.median(row["time/step_seconds"] for row in rows[NUM_SLOW_STEPS:])
            gib = max(row.get("memory/peak_gib", 0) for row in rows)
            yield shape(values), Measured(f"{log.parent.parent.name}/{log.parent.name}", seconds, gib)


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # a line that a crash cut off
            continue
