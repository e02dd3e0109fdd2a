"""The controller of a search: it starts trials while there is room, follows their metrics, and prunes poor ones.

It holds nothing that cannot be read from the ledger and the runs' metrics.jsonl, so it may be killed at any moment: the
next controller draws what this one would have drawn, and takes over the runs that are still going.
"""

import math
import os
import time
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

from hydra.utils import instantiate
from omegaconf import DictConfig

from bbu_train.errors import InputError, listed
from bbu_train.runtime import preemption
from bbu_train.runtime.config_folder import config_folder
from bbu_train.tracker import mlflow_finished_run
from bbu_train.tracker.jsonl import read_rows
from launchers.cells import Cell
from launchers.job_states import RetryTransient
from launchers.ledger import RESTARTABLE, Ledger, State
from launchers.lock import locked
from launchers.preflight.check import CheckAborted, check_cells, group_for_checks, with_steps
from launchers.protocol import SearchLauncher
from launchers.search.command import read_search_command
from launchers.search.source import TrialSource
from launchers.search.start import read_record
from launchers.search.trials import TrialRun
from launchers.status import read_statuses

NUM_WITHOUT_METRIC = 3  # finished trials without the metric, before its name counts as misspelt


class Controller:
    """Runs the search in `ledger`, whose config.yaml is `cfg`."""

    def __init__(self, ledger: Ledger, cfg: DictConfig):
        self.ledger = ledger
        record = read_record(ledger)
        os.chdir(record["started_in"])
        command = read_search_command(record["arguments"], config_folder())
        assert command is not None, "the command of a search asks for a search"
        if command.config.steps is None:
            command.config.steps = cfg.steps  # of the epochs of the first trial
        self.command, self.settings = command, command.settings
        self.launcher: SearchLauncher = instantiate(cfg.launchers, _convert_="all")
        self.source = TrialSource(command, ledger)
        self.checked = [Cell((), {}, cfg)]  # the first trial was checked before the search started
        self.known_steps: dict[str, int] = {}
        self.running: list[TrialRun] = []
        self.values: dict[str, float] = {}
        self.num_without_metric = 0

    def run(self) -> None:
        """Return when all trials have ended. Raises SweepPreempted when a signal asks this process to end."""
        self.running += self.source.restore()
        pool, retry_transient = ThreadPoolExecutor(self.settings.num_parallel), RetryTransient()
        try:
            while True:
                with retry_transient:
                    self._poll()
                while len(self.running) < self.settings.num_parallel and (trial := self.source.next()):
                    self._start(*trial, pool)
                if not self.running:
                    break
                self._wait()
        finally:
            pool.shutdown(cancel_futures=True)
        self._print_best()

    def _start(self, trial_run: TrialRun, cell: Cell, pool: ThreadPoolExecutor) -> None:
        problem = None
        try:
            self._check(cell)
            cell = with_steps(cell, self.known_steps)
        except CheckAborted:
            raise
        except InputError as error:
            problem = str(error)
        with locked(self.ledger.folder):
            trial_run.record()  # first: without trial.json the run would not belong to the search
            self.ledger.add([cell])
            if problem:
                trial_run.refuse(problem)
        self.running.append(trial_run)
        if not problem:
            trial_run.starting = pool.submit(self.launcher.start, self.ledger, [trial_run.run], RESTARTABLE)

    def _check(self, cell: Cell) -> None:
        """Check a cell as a sweep is checked, unless it is like one that has passed."""
        groups = [numbers for groups in group_for_checks([*self.checked, cell]).values() for numbers in groups]
        if [len(self.checked)] in groups:
            check_cells([cell], [], self.known_steps)
            self.checked.append(cell)

    def _poll(self) -> None:
        """Read what all running trials have done since the last poll.

        Ended trials come first, as the pruner compares the others with them.
        """
        # Read before the states: a run that starts in between must not look like one that has ended.
        started = [trial_run.is_started for trial_run in self.running]
        statuses = read_statuses(self.ledger, [trial_run.run for trial_run in self.running])
        ended, active = [], []
        for trial_run, is_started, status in zip(self.running, started, statuses, strict=True):
            if is_started and trial_run.should_start_again():
                self.source.put_back(trial_run)
                continue
            is_over = is_started and not status.state.has_live_job
            (ended if is_over else active).append((trial_run, status.state))
        self._report([trial_run for trial_run, _ in ended])
        for trial_run, state in ended:
            self._finish(trial_run, state)
        poor = self._report([trial_run for trial_run, _ in active])
        self.running = [trial_run for trial_run, _ in active]
        for trial_run, state in active:
            if state.has_live_job and (trial_run in poor or trial_run.is_pruned()):
                trial_run.prune(self._prune_reason(trial_run))

    def _report(self, trial_runs: Sequence[TrialRun]) -> set[TrialRun]:
        """Report new evaluations to Optuna in the order in which they were made; return the trials to prune."""
        poor: set[TrialRun] = set()
        new = [evaluation for trial_run in trial_runs for evaluation in trial_run.new_evaluations(self.settings.metric)]
        for _, trial_run, step, value in sorted(new, key=lambda evaluation: evaluation.time):
            trial_run.trial.report(value, step)
            trial_run.last = step, value
            (poor.add if trial_run.trial.should_prune() else poor.discard)(trial_run)
        return poor

    def _prune_reason(self, trial_run: TrialRun) -> str:
        pruner = type(self.source.study.optuna_study.pruner).__name__
        if not trial_run.last:
            return pruner
        step, value = trial_run.last
        return f"{self.settings.metric} was {value:.4g} at step {step}, pruned by {pruner}"

    def _finish(self, trial_run: TrialRun, state: State) -> None:
        """Tell Optuna how a trial has ended. Raises what its launcher raised, as no other trial could start either."""
        if trial_run.starting is not None:
            trial_run.starting.result()
        last, metric = trial_run.last, self.settings.metric
        value = last[1] if last and state.name == "done" and math.isfinite(last[1]) else None
        self.source.study.tell(trial_run.trial, value, state.name == "pruned")
        print(trial_run.describe(state, metric), flush=True)
        if state.name == "pruned" and "mlflow" in (tracker := trial_run.entry.config().tracker):
            print(f"MLflow: {mlflow_finished_run.mark_pruned(tracker.mlflow, trial_run.log.parent)}", flush=True)
        if value is not None:
            self.values[trial_run.run] = value
        self.num_without_metric += state.name == "done" and last is None
        if self.num_without_metric >= NUM_WITHOUT_METRIC and not self.values:
            known = sorted({name for _, row in read_rows(trial_run.log) for name in row} - {"step", "time/logged"})
            raise InputError(
                f"{self.num_without_metric} trials are done, and none has search.metric={metric}. There are: "
                f"{listed(known)}. The same command with one of these continues with the existing trials."
            )

    def _wait(self) -> None:
        """Wait for the next poll, or until a launcher's call returns. Raises SweepPreempted after a signal."""
        preemption.end_sweep_if_asked()
        starting = [trial_run.starting for trial_run in self.running]
        pending = [future for future in starting if future and not future.done()]
        if pending:
            futures.wait(pending, self.settings.poll_seconds, futures.FIRST_COMPLETED)
        else:
            time.sleep(self.settings.poll_seconds)

    def _print_best(self) -> None:
        metric, num_trials = self.settings.metric, len(self.source.runs)
        if not self.values:
            raise InputError(
                f"{num_trials} trials have ended, and none with a {metric}. See why: python -m launchers status "
                f"{self.ledger.folder.parent}"
            )
        best = (max if self.settings.mode == "max" else min)(self.values, key=lambda run: self.values[run])
        texts = self.ledger.entry(best).cell["overrides"]
        own = " ".join(text for text in texts if text.partition("=")[0].lstrip("+") in self.command.searched)
        print(f"{num_trials} trials, {len(self.values)} of them done with {metric}.")
        print(f"The best is {best} with {self.values[best]:.4g}: {own}", flush=True)
