"""The trials that a search starts next: first those that an earlier controller left, then new draws."""

from bbu_train.errors import InputError
from launchers.cells import Cell
from launchers.ledger import RESTARTABLE, Ledger
from launchers.search.command import SearchCommand, create_study
from launchers.search.trials import TrialRun, params_key, read_trials
from launchers.status import read_statuses

MAX_DRAWS = 100  # in a row that only repeat other trials, before the space counts as exhausted


class TrialSource:
    """All trials of the search in `ledger`: `study` knows them, and `runs` are the names of their runs."""

    def __init__(self, command: SearchCommand, ledger: Ledger):
        self.command = command
        self.ledger = ledger
        self.study = create_study(command)
        self.runs: set[str] = set()
        self._waiting: list[TrialRun] = []
        self._drawn: set[str] = set()
        self._is_exhausted = False

    def restore(self) -> list[TrialRun]:
        """Restore every trial that was drawn before.

        Return those that are running or have ended. `next` gives the others, whose runs have to be started again.
        """
        trials = read_trials(self.ledger)
        statuses = read_statuses(self.ledger, [entry.run for entry, _ in trials])
        others = []
        for (entry, content), status in zip(trials, statuses, strict=True):
            trial_run = TrialRun(self.study.restore(content["number"], content["params"]), entry)
            (self._waiting if status.can_start(RESTARTABLE) else others).append(trial_run)
            self._remember(trial_run)
        return others

    def put_back(self, trial_run: TrialRun) -> None:
        """Have `next` give this trial again."""
        self._waiting.append(trial_run)

    def next(self) -> tuple[TrialRun, Cell] | None:
        """Return a trial to start, with its cell; None if there are enough, or the space has no other."""
        if self._waiting:
            trial_run = self._waiting.pop(0)
            return trial_run, self._compose_again(trial_run)
        if len(self.runs) >= self.command.settings.num_trials or self._is_exhausted:
            return None
        for _ in range(MAX_DRAWS):
            trial = self.study.ask()
            if params_key(trial.params) not in self._drawn:
                cell = self.command.cell(trial.params)
                self._drawn.add(params_key(trial.params))
                if cell.cfg.run not in self.runs:  # 1 and 1.0 differ as draws and are the same run
                    trial_run = TrialRun(trial, self.ledger.entry(cell.cfg.run))
                    self._remember(trial_run)
                    return trial_run, cell
            self.study.tell(trial, None)
        self._is_exhausted = True
        print(
            f"The last {MAX_DRAWS} draws repeated earlier trials, so the space is exhausted: "
            f"the search ends with {len(self.runs)} trials.",
            flush=True,
        )
        return None

    def _remember(self, trial_run: TrialRun) -> None:
        self._drawn.add(params_key(trial_run.trial.params))
        self.runs.add(trial_run.run)

    def _compose_again(self, trial_run: TrialRun) -> Cell:
        """Return the cell of a trial that was drawn before. Raises InputError if it now is another run."""
        cell = self.command.cell(trial_run.trial.params)
        if cell.cfg.run != trial_run.run:
            raise InputError(
                f"Trial {trial_run.trial.number} was run {trial_run.run} and now is {cell.cfg.run}: conf/ or the data "
                "has changed since. Give the search another sweep=<name>."
            )
        return cell
