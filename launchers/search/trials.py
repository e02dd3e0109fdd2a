"""The trials of a search in the ledger: `<run>/trial.json` has the number and the parameters of the run's trial."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.tracker.jsonl import read_rows
from launchers import job_states
from launchers.ledger import Entry, Ledger, State

if TYPE_CHECKING:  # the programs that only show a search do not import Optuna
    from optuna.trial import Trial

PRUNED = "pruned"


class Evaluation(NamedTuple):
    """A value of the search's metric in a run's log."""

    time: float
    trial_run: TrialRun
    step: int
    value: float


class TrialRun:
    """An Optuna trial with its run.

    `starting` is the launcher's call that starts the run, in a thread of this process. `last` is the newest evaluation:
    its step and value.
    """

    def __init__(self, trial: Trial, entry: Entry):
        self.trial = trial
        self.entry = entry
        self.run = entry.run
        self.starting: Future[int] | None = None
        self.last: tuple[int, float] | None = None
        self._steps: set[int] = set()
        self._size = 0
        self._is_asked_to_end = False

    @property
    def is_started(self) -> bool:
        """Whether the launcher's call has returned, or another process made it."""
        return self.starting is None or self.starting.done()

    @property
    def log(self) -> Path:
        return Path(self.entry.cell["folder"]) / "metrics.jsonl"

    def should_start_again(self) -> bool:
        """Whether the launcher's call ended because SLURM was unavailable, so that it should be repeated."""
        return self.starting is not None and isinstance(self.starting.exception(), job_states.SlurmUnavailable)

    def record(self) -> None:
        """Write trial.json."""
        self.entry.folder.mkdir(exist_ok=True)
        content = {"number": self.trial.number, "params": self.trial.params}
        atomic_write(self.entry.folder / "trial.json", json.dumps(content, ensure_ascii=False))

    def new_evaluations(self, metric: str) -> Iterator[Evaluation]:
        """Yield the evaluations since the last call, without the steps that a resumed run has repeated."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if size == self._size:
            return
        self._size = size
        for _, row in read_rows(self.log):
            if metric in row and row["step"] not in self._steps:
                self._steps.add(row["step"])
                yield Evaluation(row.get("time/logged", 0.0), self, row["step"], float(row[metric]))

    def is_pruned(self) -> bool:
        """Whether the run is marked as pruned. Its job may not have ended yet."""
        attempt = self.entry.newest_attempt()
        return attempt is not None and attempt.read("cancelled").get("state") == PRUNED

    def prune(self, reason: str) -> None:
        """Mark the run as pruned, so that it is not started again, and end its job."""
        attempt = self.entry.newest_attempt()
        if self._is_asked_to_end or attempt is None or attempt.job is None:
            return
        if not self.is_pruned():
            attempt.write("cancelled", state=PRUNED, reason=reason)
        job_states.cancel([attempt.job])
        self._is_asked_to_end = True

    def refuse(self, reason: str) -> None:
        """Record that the run failed before it could start. The caller holds the lock."""
        self.entry.add_attempt().write("state", state="failed", reason=reason)

    def describe(self, state: State, metric: str) -> str:
        result = f"{metric} {self.last[1]:.4g} at step {self.last[0]}" if self.last else f"no {metric}"
        return f"trial {self.trial.number}, {self.run}: {state.name}, {result}"


def read_trials(ledger: Ledger) -> list[tuple[Entry, dict[str, Any]]]:
    """Return every trial drawn so far, in order: its run and the content of its trial.json."""
    paths = ledger.folder.glob("*/trial.json")
    trials = [(Entry(path.parent), json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return sorted(trials, key=lambda trial: trial[1]["number"])


def params_key(params: Mapping[str, Any]) -> str:
    """Return a key that is equal for trials at one point of the space."""
    return json.dumps(params, sort_keys=True)
