"""The runs of a sweep as their folders hold them, and which of them cannot be compared, with the reason."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bbu_train.compare import ledger
from bbu_train.errors import InputError
from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity as runs
from bbu_train.runs.config_keys import leaves
from bbu_train.tracker.jsonl import read_rows

EVALUATION = "eval/"


@dataclass(frozen=True, eq=False)
class SweepRun:
    name: str
    config: DictConfig
    values: Mapping[str, Any]
    """Every key that can change the result, resolved; `raw` as they are written, references unresolved."""
    raw: Mapping[str, Any]
    choices: Mapping[str, str]
    """Of the config groups; empty where nobody wrote them down."""
    commit: str | None
    command: list[str]
    written: float
    """When metrics.jsonl was last written, seconds."""
    series: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Each metric's steps and values, in order."""


@dataclass(frozen=True)
class Apart:
    """A run that is not compared, and why; `run` is None where its config cannot be read."""

    name: str
    reason: str
    run: SweepRun | None = None


def find(outputs: Path, sweep: str) -> Path:
    """The sweep's folder."""
    folder = outputs / sweep
    if any(folder.glob(f"*/{run_folder.CONFIG}")) or ledger.names(folder):
        return folder
    there = sorted({path.parent.parent.name for path in outputs.glob(f"*/*/{run_folder.CONFIG}")})
    near = difflib.get_close_matches(sweep, there, n=1)
    hint = f"Did you mean sweep={near[0]}? " if near else ""
    listed = f"There: {', '.join(there)}." if there else "Nor any other sweep: say with outputs= where runs lie."
    raise InputError(f"There are no runs in {folder}. {hint}{listed}")


def read(folder: Path) -> tuple[list[SweepRun], list[Apart]]:
    """Runs that have ended, by name, and the others."""
    ended, apart = [], []
    for path in sorted(path for path in folder.iterdir() if (path / run_folder.CONFIG).exists()):
        run = None
        try:
            run = _configured(path)
            run = _with_rows(run, path)
        except (ValueError, TypeError, OSError, OmegaConfBaseException) as error:
            says = " ".join(str(error).replace(f"{path.resolve()}/", "").replace(f"{path}/", "").split())
            apart.append(Apart(path.name, f"damaged: {says[:300]}", run))
            continue
        reason = _unfinished(run, path, ledger.last_word(folder, path.name))
        if reason is None:
            ended.append(run)
        else:
            apart.append(Apart(path.name, reason, run))
    begun = {run.name for run in ended} | {each.name for each in apart}
    waiting = [name for name in ledger.names(folder) if name not in begun]
    return ended, [*apart, *(Apart(name, f"not begun, {ledger.last_word(folder, name)}") for name in waiting)]


def without_repetitions(ended: Sequence[SweepRun]) -> tuple[list[SweepRun], list[Apart]]:
    """Of runs with one config, seed included, the one written last: the same again is no second sample of chance."""
    identities = [runs.hash_values(run.values) for run in ended]
    latest: dict[str, SweepRun] = {}
    for identity, run in zip(identities, ended, strict=True):
        if identity not in latest or latest[identity].written <= run.written:
            latest[identity] = run
    kept, apart = [], []
    for identity, run in zip(identities, ended, strict=True):
        taken = latest[identity]
        if taken is run:
            kept.append(run)
        else:
            apart.append(Apart(run.name, f"the same config and seed as {taken.name}, which is later", run))
    return kept, apart


def _configured(path: Path) -> SweepRun:
    config = run_folder.load(path)
    if not isinstance(config.get("steps"), int | float):
        raise InputError(f"{path / run_folder.CONFIG} has no number of steps, so it is not the config of a run.")
    made = _environment(path / run_folder.ENVIRONMENT)
    return SweepRun(
        path.name,
        config,
        runs.result_values(config),
        dict(leaves(OmegaConf.to_container(config, resolve=False))),
        made.get("choices", {}),
        made.get("git_commit"),
        made.get("command", []),
        (path / run_folder.CONFIG).stat().st_mtime,
    )


def _environment(path: Path) -> dict[str, Any]:
    """Empty where there is no such file; a damaged one is said, for choices that are not known change the tables."""
    if not path.exists():
        return {}
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}. Remove it to compare the run by its config.yaml.") from error
    if not isinstance(made, dict):
        raise InputError(f"{path} holds no object. Remove it to compare the run by its config.yaml.")
    return made


def _with_rows(run: SweepRun, path: Path) -> SweepRun:
    metrics = path / "metrics.jsonl"
    series: dict[str, list[tuple[int, float]]] = {}
    for _, row in read_rows(metrics) if metrics.exists() else ():
        step = row.pop("step")
        for name, value in row.items():
            series.setdefault(name, []).append((step, _number(value, name, step, metrics)))
    written = metrics.stat().st_mtime if metrics.exists() else run.written
    return SweepRun(**{**vars(run), "series": series, "written": written})


def _number(value: Any, name: str, step: int, path: Path) -> float:
    """Strings "NaN" and "Infinity" are numbers too."""
    try:
        return float(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {name} at step {step} is {value!r}, which is no number.") from error


def _unfinished(run: SweepRun, path: Path, said: str | None) -> str | None:
    """Why the run has not ended; None if it has, evaluation of the last step included.

    train.log knows of errors, and `said` by the ledger, of the scheduler too.
    """
    steps = int(run.config.steps)
    last = _last_step(run.series)
    evaluated = _last_step({name: points for name, points in run.series.items() if name.startswith(EVALUATION)})
    if last >= steps and (evaluated >= steps or run.config.get("eval_every") is None):
        return None
    where = f"at step {last} of {steps}" if last < steps else f"before the evaluation of its last step, {steps}"
    if last < 0:
        where = f"before its first row, of {steps} steps"
    if said is not None and said.startswith("pruned"):  # of which train.log knows no more than that a signal came
        return f"{said}, {where}"
    if (failure := _failure(path / "train.log")) is not None:
        return f"stopped {where}: {failure}"
    return f"unfinished, {where}" if said is None else f"unfinished, {where}; ledger: {said}"


def _last_step(series: Mapping[str, list[tuple[int, float]]]) -> int:
    return max((points[-1][0] for points in series.values()), default=-1)


def _failure(log: Path) -> str | None:
    """The last line of the traceback with which train.log ends; None where the run was killed, or still goes on."""
    if not log.exists():
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    stopped = re.search(r"stopped at step \d+\n(?!.*stopped at step)(.*)", text, re.DOTALL)
    if stopped is None or re.search(r": from step \d+ to \d+\n", stopped.group(1)):
        return None
    errors = re.findall(r"^(?!Traceback)[\w.]+(?:: .*)?$", stopped.group(1), re.MULTILINE)
    return errors[-1] if errors else None
