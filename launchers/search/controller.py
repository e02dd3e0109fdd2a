"""What makes the trials of a search: it draws one where there is room, starts its run, and ends those that are poor.

It holds nothing that the ledger and the runs' metrics.jsonl do not say, so it may be killed at any moment: the next one
draws what this one would have drawn, and takes over the runs that go on meanwhile.
"""

import math
import os
import time
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

from hydra.utils import instantiate
from omegaconf import DictConfig

from bbu_train.cli import main as command_line
from bbu_train.errors import InputError
from bbu_train.runtime import preemption
from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.jsonl import read_rows
from launchers import jobs, status
from launchers.cells import Cell
from launchers.ledger import OPEN, Ledger, State, locked
from launchers.preflight import check as preflight
from launchers.search import command as search_command
from launchers.search import start as search
from launchers.search.trials import Followed, identity, recorded

NUM_DRAWS = 100  # in a row that only repeat other trials, after which the space is taken for exhausted
NUM_WITHOUT = 3  # trials that are done without the metric, after which it is taken for misspelt


class Controller:
    """Of the search in `ledger`; `cfg` is its config.yaml."""

    def __init__(self, ledger: Ledger, cfg: DictConfig):
        self.ledger = ledger
        was = search.written_down(ledger)
        os.chdir(was["started_in"])
        command = search_command.read(was["arguments"], command_line.config_folder())
        assert command is not None, "the command of a search asks for a search"
        self.command, self.settings = command, command.settings
        self.launcher = instantiate(cfg.launchers, _convert_="all")
        self.study = search_command.made_study(command)
        self.checked = [Cell((), {}, cfg)]  # the first trial's, before anything was started
        self.drawn: set[str] = set()
        self.runs: set[str] = set()
        self.waiting: list[Followed] = []
        self.running: list[Followed] = []
        self.values: dict[str, float] = {}
        self.num_without = 0
        self.is_exhausted = False

    def run(self) -> None:
        """Until all trials have ended. Raises SweepPreempted when a signal asks this process to end."""
        self._recall()
        pool, patience = ThreadPoolExecutor(self.settings.num_parallel), jobs.Patience()
        try:
            while True:
                with patience:
                    self._look()
                while len(self.running) < self.settings.num_parallel and (found := self._next()):
                    self._start(*found, pool)
                if not self.running:
                    break
                self._wait()
        finally:
            pool.shutdown(cancel_futures=True)
        self._say_best()

    def _recall(self) -> None:
        """All trials that were drawn before. Those that nobody works on are started again first."""
        drawn = recorded(self.ledger)
        rows = status.rows(self.ledger, [entry.run for entry, _ in drawn])
        for (entry, said), row in zip(drawn, rows, strict=True):
            its = Followed(self.study.again(said["number"], said["params"]), entry)
            (self.waiting if row.may_start(OPEN) else self.running).append(its)
            self._note(its)

    def _note(self, its: Followed) -> None:
        self.drawn.add(identity(its.trial.params))
        self.runs.add(its.run)

    def _next(self) -> tuple[Followed, Cell] | None:
        """A trial to start, and its cell; None if there are enough, or no other is found."""
        if self.waiting:
            its = self.waiting.pop(0)
            return its, self._cell_again(its)
        if len(self.runs) >= self.settings.num_trials or self.is_exhausted:
            return None
        for _ in range(NUM_DRAWS):
            trial = self.study.ask()
            if identity(trial.params) not in self.drawn:
                cell = self.command.cell(trial.params)
                self.drawn.add(identity(trial.params))
                if cell.cfg.run not in self.runs:  # as it is where 1 and 1.0 are drawn
                    its = Followed(trial, self.ledger.entry(cell.cfg.run))
                    self._note(its)
                    return its, cell
            self.study.tell(trial, None)
        self.is_exhausted = True
        print(f"{NUM_DRAWS} draws only repeated other trials: {len(self.runs)} are all there are.", flush=True)
        return None

    def _cell_again(self, its: Followed) -> Cell:
        cell = self.command.cell(its.trial.params)
        if cell.cfg.run != its.run:
            raise InputError(
                f"Trial {its.trial.number} was run {its.run} and now is {cell.cfg.run}: conf/ has changed since. "
                "Give the search another sweep=<name>."
            )
        return cell

    def _start(self, its: Followed, cell: Cell, pool: ThreadPoolExecutor) -> None:
        problem = self._problem(cell)
        with locked(self.ledger.folder):
            its.write_down()  # first: a run without it would be none of the search
            self.ledger.add([cell])
            if problem:
                its.refuse(problem)
        self.running.append(its)
        if not problem:
            its.starting = pool.submit(self.launcher.start, self.ledger, [its.run], OPEN)

    def _problem(self, cell: Cell) -> str | None:
        """What the preflight finds wrong with a cell that is unlike all that have passed it."""
        alike = [numbers for groups in preflight.tasks([*self.checked, cell]).values() for numbers in groups]
        if [len(self.checked)] not in alike:
            return None
        try:
            preflight.check([cell], unmeasured=[])
        except preflight.NotChecked:
            raise
        except InputError as error:
            return str(error)
        self.checked.append(cell)
        return None

    def _look(self) -> None:
        """Hear of all that runs: first of what has ended, by which the others are judged."""
        were_started = [its.is_started for its in self.running]  # before the states: what begins meanwhile is not over
        rows = status.rows(self.ledger, [its.run for its in self.running])
        ended, living = [], []
        for its, was_started, row in zip(self.running, were_started, rows, strict=True):
            if was_started and its.could_not_ask():
                self.waiting.append(its)
                continue
            is_over = was_started and not row.state.in_hand
            (ended if is_over else living).append((its, row.state))
        self._report([its for its, _ in ended])
        for its, state in ended:
            self._end(its, state)
        poor = self._report([its for its, _ in living])
        self.running = [its for its, _ in living]
        for its, state in living:
            if state.in_hand and (its in poor or its.is_pruned()):
                its.prune(self._reason(its))

    def _report(self, some: Sequence[Followed]) -> set[Followed]:
        """Tell Optuna of every new evaluation, in the order in which they were made; give the trials that are poor."""
        poor = set()
        new = [evaluation for its in some for evaluation in its.evaluations(self.settings.metric)]
        for _, its, step, value in sorted(new, key=lambda evaluation: evaluation[0]):
            its.trial.report(value, step)
            its.last = step, value
            (poor.add if its.trial.should_prune() else poor.discard)(its)
        return poor

    def _reason(self, its: Followed) -> str:
        judge = type(self.study.optuna.pruner).__name__
        return (
            f"{self.settings.metric} was {its.last[1]:.4g} at step {its.last[0]}, poor by {judge}"
            if its.last
            else judge
        )

    def _end(self, its: Followed, state: State) -> None:
        if its.starting is not None:
            its.starting.result()  # raises what the launcher did: then no other could be started either
        value = its.last[1] if its.last and state.name == "done" and math.isfinite(its.last[1]) else None
        self.study.tell(its.trial, value, state.name == "pruned")
        print(its.says(state, self.settings.metric), flush=True)
        if state.name == "pruned" and "mlflow" in (tracker := its.entry.config().tracker):
            print(f"Pruned in MLflow: {mlflow_finished_run.mark_pruned(tracker.mlflow, its.log.parent)}", flush=True)
        if value is not None:
            self.values[its.run] = value
        self.num_without += state.name == "done" and its.last is None
        if self.num_without >= NUM_WITHOUT and not self.values:
            known = sorted({name for _, row in read_rows(its.log) for name in row} - {"step", "time/logged"})
            raise InputError(
                f"{self.num_without} trials are done, and none has search.metric={self.settings.metric}. There are: "
                f"{', '.join(known)}. The same command with one of these goes on with the trials that are there."
            )

    def _wait(self) -> None:
        """Until something may have changed."""
        preemption.end_sweep_if_asked()
        pending = [its.starting for its in self.running if its.starting and not its.starting.done()]
        if pending:
            futures.wait(pending, self.settings.poll_seconds, futures.FIRST_COMPLETED)
        else:
            time.sleep(self.settings.poll_seconds)

    def _say_best(self) -> None:
        metric = self.settings.metric
        if not self.values:
            raise InputError(
                f"{len(self.runs)} trials have ended, and none with a {metric}. See why: python -m launchers status "
                f"{self.ledger.folder.parent}"
            )
        best = (max if self.settings.mode == "max" else min)(self.values, key=lambda run: self.values[run])
        texts = self.ledger.entry(best).cell["overrides"]
        own = " ".join(text for text in texts if text.partition("=")[0].lstrip("+") in self.command.searched)
        print(f"{len(self.runs)} trials, {len(self.values)} of them done with {metric}.")
        print(f"The best is {best} with {self.values[best]:.4g}: {own}", flush=True)
