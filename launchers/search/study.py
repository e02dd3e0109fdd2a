"""The trials of a search as Optuna knows them. It is kept nowhere: it is made anew from the ledger, trial by trial."""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState


class Study:
    """Draws trials from `space` and hears of them. `mode` says which is better, max or min.

    What is drawn depends on `seed`, the trial's number and what is known of the others, and on nothing else: a study
    that was made anew goes on as the first would have. So the sampler is built for each trial.
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
        self.optuna = optuna.create_study(study_name="search", direction=direction, pruner=pruner)

    def ask(self) -> Trial:
        """The next trial, drawn."""
        self.optuna.sampler = self.sampler(seed=self.seed + self._num_trials())
        return self.optuna.ask(self.space)

    def again(self, number: int, params: Mapping[str, Any]) -> Trial:
        """A trial that was drawn before, with its number; those that were drawn in between came to nothing."""
        while self._num_trials() < number:
            self.optuna.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
        self.optuna.enqueue_trial(dict(params))
        return self.optuna.ask(self.space)

    def tell(self, trial: Trial, value: float | None, pruned: bool = False) -> None:
        """A trial has ended with this value; without one it has failed, or was pruned."""
        state = TrialState.COMPLETE if value is not None else TrialState.PRUNED if pruned else TrialState.FAIL
        self.optuna.tell(trial, value, state)

    def _num_trials(self) -> int:
        return len(self.optuna.get_trials(deepcopy=False))
