"""The trials of a search in the ledger: `<run>/trial.json` says which trial a run is, its number and its values."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bbu_train.runtime.atomic_write import atomic_write
from bbu_train.tracker.jsonl import read_rows
from launchers import jobs
from launchers.ledger import Entry, Ledger, State

PRUNED = "pruned"


def recorded(ledger: Ledger) -> list[tuple[Entry, dict[str, Any]]]:
    """Every trial that was drawn, in order, with what its trial.json says."""
    paths = ledger.folder.glob("*/trial.json")
    found = [(Entry(path.parent), json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return sorted(found, key=lambda trial: trial[1]["number"])


class Followed:
    """A trial of Optuna's and its run, of which this tells what is new.

    `starting` is the launcher's work on it in this process, `last` its newest evaluation: step and value.
    """

    def __init__(self, trial: Any, entry: Entry):
        self.trial = trial
        self.entry = entry
        self.run = entry.run
        self.starting: Future | None = None
        self.last: tuple[int, float] | None = None
        self._steps: set[int] = set()
        self._size = 0
        self._is_asked_to_end = False

    @property
    def is_started(self) -> bool:
        return self.starting is None or self.starting.done()

    def could_not_ask(self) -> bool:
        """Whether the launcher's work has ended because SLURM did not answer it, so that it is to be tried again."""
        return self.starting is not None and isinstance(self.starting.exception(), jobs.NoAnswer)

    @property
    def log(self) -> Path:
        return Path(self.entry.cell["folder"]) / "metrics.jsonl"

    def write_down(self) -> None:
        self.entry.folder.mkdir(exist_ok=True)
        said = {"number": self.trial.number, "params": self.trial.params}
        atomic_write(self.entry.folder / "trial.json", json.dumps(said, ensure_ascii=False))

    def evaluations(self, metric: str) -> Iterator[tuple[float, "Followed", int, float]]:
        """(time, this, step, value) of each that is new. What a resumed run writes again is what it wrote before."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if size == self._size:
            return
        self._size = size
        for _, row in read_rows(self.log):
            if metric in row and row["step"] not in self._steps:
                self._steps.add(row["step"])
                yield row.get("time/logged", 0.0), self, row["step"], float(row[metric])

    def is_pruned(self) -> bool:
        """Whether it was found poor, though its job may not have ended yet."""
        newest = self.entry.newest()
        return newest is not None and newest.read("cancelled").get("state") == PRUNED

    def prune(self, reason: str) -> None:
        """Mark the run, which then is not started again, and end its job."""
        newest = self.entry.newest()
        if self._is_asked_to_end or newest is None or newest.job is None:
            return
        if not self.is_pruned():
            newest.write("cancelled", state=PRUNED, reason=reason)
        jobs.cancel([newest.job])
        self._is_asked_to_end = True

    def refuse(self, reason: str) -> None:
        """Say that it cannot be run at all. The caller holds the lock."""
        self.entry.claim().write("state", state="failed", reason=reason)

    def says(self, state: State, metric: str) -> str:
        result = f"{metric} {self.last[1]:.4g} at step {self.last[0]}" if self.last else f"no {metric}"
        return f"trial {self.trial.number}, {self.run}: {state.name}, {result}"


def identity(params: Mapping[str, Any]) -> str:
    """Equal for trials at one point of the space."""
    return json.dumps(params, sort_keys=True)
