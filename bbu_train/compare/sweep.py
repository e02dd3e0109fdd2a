"""The runs of a sweep, read from their folders; and the runs that cannot be compared, each with the reason."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.compare import ledger
from bbu_train.errors import InputError, listed
from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity, length
from bbu_train.runs.names import folder_name
from bbu_train.runtime.nested import leaves
from bbu_train.tracker.jsonl import read_rows

EVALUATION = "eval/"


@dataclass(frozen=True, eq=False)
class SweepRun:
    name: str
    config: DictConfig
    resolved_values: Mapping[str, Any]
    """The value of each key that can change the result, references resolved."""
    unresolved_values: Mapping[str, Any]
    """The value of each key as config.yaml has it, references unresolved."""
    choices: Mapping[str, str]
    """The choice of each config group; empty if environment.json does not record it."""
    commit: str | None
    command: list[str]
    modified_at: float
    """When metrics.jsonl was last written, in seconds."""
    series: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    """(step, value) of each metric, in the order of steps."""


@dataclass(frozen=True)
class ExcludedRun:
    """A run that is not compared, and the reason. `run` is None if its config cannot be read."""

    name: str
    reason: str
    run: SweepRun | None = None


def find_sweep(outputs: Path, sweep: str) -> Path:
    """Return the sweep's folder. Raise InputError, with the sweeps that do exist, if it has no runs."""
    folder = outputs / folder_name(sweep)
    if any(folder.glob(f"*/{run_folder.CONFIG}")) or ledger.run_names(folder):
        return folder
    others = sorted({path.parent.parent.name for path in outputs.glob(f"*/*/{run_folder.CONFIG}")})
    similar = difflib.get_close_matches(sweep, others, n=1)
    hint = f"Did you mean sweep={similar[0]}? " if similar else ""
    known = f"Sweeps there: {listed(others)}." if others else f"{outputs} holds no sweep: name another with outputs=."
    raise InputError(f"There are no runs in {folder}. {hint}{known}")


def read_runs(folder: Path) -> tuple[list[SweepRun], list[ExcludedRun]]:
    """Return the finished runs of a sweep, sorted by name, and the excluded ones."""
    finished, excluded = [], []
    for path in sorted(path for path in folder.iterdir() if (path / run_folder.CONFIG).exists()):
        run = None
        try:
            run = _read_config(path)
            run = _add_metrics(run, path)
        except (ValueError, TypeError, OSError, OmegaConfBaseException) as error:
            message = " ".join(str(error).replace(f"{path.resolve()}/", "").replace(f"{path}/", "").split())
            excluded.append(ExcludedRun(path.name, f"damaged: {message[:300]}", run))
            continue
        reason = _reason_unfinished(run, path, ledger.last_status(folder, path.name))
        if reason is None:
            finished.append(run)
        else:
            excluded.append(ExcludedRun(path.name, reason, run))
    begun = {run.name for run in [*finished, *excluded]}
    waiting = [name for name in ledger.run_names(folder) if name not in begun]
    excluded += [ExcludedRun(name, f"not begun, {ledger.last_status(folder, name)}") for name in waiting]
    return finished, excluded


def drop_repetitions(finished: Sequence[SweepRun]) -> tuple[list[SweepRun], list[ExcludedRun]]:
    """Keep the newest of the runs whose config and seed are equal: a repetition is no second random sample."""
    identities = [identity.hash_values(run.resolved_values) for run in finished]
    newest: dict[str, SweepRun] = {}
    for key, run in zip(identities, finished, strict=True):
        if key not in newest or newest[key].modified_at <= run.modified_at:
            newest[key] = run
    kept, excluded = [], []
    for key, run in zip(identities, finished, strict=True):
        if newest[key] is run:
            kept.append(run)
        else:
            excluded.append(
                ExcludedRun(run.name, f"the same config and seed as {newest[key].name}, which is later", run)
            )
    return kept, excluded


def _read_config(path: Path) -> SweepRun:
    config = run_folder.load(path)
    if not isinstance(config.get("steps"), int | float):
        raise InputError(f"{path / run_folder.CONFIG} has no number of steps, so it is not the config of a run.")
    environment = _read_environment(path / run_folder.ENVIRONMENT)
    return SweepRun(
        path.name,
        config,
        identity.result_values(config),
        dict(leaves(OmegaConf.to_container(config, resolve=False))),
        environment.get("choices", {}),
        environment.get("git_commit"),
        environment.get("command", []),
        (path / run_folder.CONFIG).stat().st_mtime,
    )


def _read_environment(path: Path) -> dict[str, Any]:
    """Return the file's content, or {} without a file. A damaged file raises, because its choices change the tables."""
    if not path.exists():
        return {}
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}. Remove it to compare the run by its config.yaml.") from error
    if not isinstance(environment, dict):
        raise InputError(f"{path} holds no JSON object. Remove it to compare the run by its config.yaml.")
    return environment


def _add_metrics(run: SweepRun, path: Path) -> SweepRun:
    metrics = path / "metrics.jsonl"
    series: dict[str, list[tuple[int, float]]] = {}
    for _, row in read_rows(metrics) if metrics.exists() else ():
        step = row.pop("step")
        for name, value in row.items():
            series.setdefault(name, []).append((step, _number(value, name, step, metrics)))
    modified_at = metrics.stat().st_mtime if metrics.exists() else run.modified_at
    return replace(run, series=series, modified_at=modified_at)


def _number(value: Any, name: str, step: int, path: Path) -> float:
    """Return the value as a float. The texts "NaN" and "Infinity" are numbers too."""
    try:
        return float(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {name} at step {step} is {value!r}, which is not a number.") from error


def _reason_unfinished(run: SweepRun, path: Path, status: str | None) -> str | None:
    """Return why the run has not ended; None if it has, the evaluation of its last step included.

    train.log knows the errors of the run, and `status`, from the ledger, those of the scheduler too.
    """
    steps = int(run.config.steps)
    last = _last_step(run.series)
    evaluated = _last_step({name: points for name, points in run.series.items() if name.startswith(EVALUATION)})
    if length.ENDED_EARLY in run.series:
        return None
    if last >= steps and (evaluated >= steps or run.config.get("eval_every") is None):
        return None
    where = f"at step {last} of {steps}" if last < steps else f"before the evaluation of its last step, {steps}"
    if last < 0:
        where = f"before its first row, of {steps} steps"
    if status is not None and status.startswith("pruned"):  # train.log only says that a signal stopped the run
        return f"{status}, {where}"
    if (error := _last_error(path / "train.log")) is not None:
        return f"stopped {where}: {error}"
    return f"unfinished, {where}" if status is None else f"unfinished, {where}; ledger: {status}"


def _last_step(series: Mapping[str, list[tuple[int, float]]]) -> int:
    return max((points[-1][0] for points in series.values()), default=-1)


def _last_error(log: Path) -> str | None:
    """Return the last line of the traceback that ends train.log; None if the run was killed or was resumed since."""
    if not log.exists():
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    stopped = re.search(r"stopped at step \d+\n(?!.*stopped at step)(.*)", text, re.DOTALL)
    if stopped is None or run_folder.RESUMED in stopped.group(1):
        return None
    errors = re.findall(r"^(?!Traceback)[\w.]+(?:: .*)?$", stopped.group(1), re.MULTILINE)
    return errors[-1] if errors else None
