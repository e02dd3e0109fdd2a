"""The trials of a search as an Optuna study. It is not stored: it is rebuilt from the ledger, trial by trial."""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState


class Study:
    """Draws trials from `space` and learns from their results. `mode`, max or min, says which value is better.

    A draw depends only on `seed`, the trial's number and what is known of the other trials, so a rebuilt study draws
    what the first one would have drawn. For this the sampler is created anew for each trial.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        sampler: Callable[..., BaseSampler],
        pruner: BasePruner,
        seed: int,
        mode: str,
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = dict(space)
        self.sampler = sampler
        self.seed = seed
        direction = {"max": "maximize", "min": "minimize"}[mode]
        self.optuna_study = optuna.create_study(study_name="search", direction=direction, pruner=pruner)

    def ask(self) -> Trial:
        """Draw the next trial."""
        self.optuna_study.sampler = self.sampler(seed=self.seed + self._num_trials())
        return self.optuna_study.ask(self.space)

    def restore(self, number: int, params: Mapping[str, Any]) -> Trial:
        """Add a trial that was drawn earlier, with its number. Missing numbers before it become failed trials."""
        while self._num_trials() < number:
            self.optuna_study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
        self.optuna_study.enqueue_trial(dict(params))
        return self.optuna_study.ask(self.space)

    def tell(self, trial: Trial, value: float | None, pruned: bool = False) -> None:
        """Record a trial's final value. Without a value the trial was pruned or has failed."""
        state = TrialState.COMPLETE if value is not None else TrialState.PRUNED if pruned else TrialState.FAIL
        self.optuna_study.tell(trial, value, state)

    def _num_trials(self) -> int:
        return len(self.optuna_study.get_trials(deepcopy=False))
