"""Early stopping: the run ends once a metric of its evaluations no longer improves."""

import math
from collections.abc import Mapping

from bbu_train.errors import InputError, all_problems, listed
from bbu_train.ops.numbers import is_count, is_number

PREFIX = "eval/"


class Patience:
    """End the run when `metric` has not improved for `patience` evaluations in a row, as in Prechelt (1998).

    Improved means above the best value so far by more than `min_delta`, or below it with mode "min". NaN is never an
    improvement. `eval_every` are the steps between two evaluations.
    """

    def __init__(self, metric: str, mode: str, patience: int, min_delta: float, eval_every: int | None) -> None:
        problems = []
        if not str(metric).startswith(PREFIX):
            problems.append(f"stopping.metric={metric}: expected a metric of evaluations, such as eval/ap50")
        if mode not in ("max", "min"):
            problems.append(f"stopping.mode={mode}: expected max or min")
        if not is_count(patience, 1):
            problems.append(f"stopping.patience={patience}: expected a whole number of evaluations, at least 1")
        if not (is_number(min_delta) and min_delta >= 0):
            problems.append(f"stopping.min_delta={min_delta}: expected a number of at least 0")
        if eval_every is None:
            problems.append(
                "stopping=patience: a run with eval_every=null evaluates never, so give eval_every a number"
            )
        if problems:
            raise all_problems("The config", problems, "Correct the values listed.")
        self.metric = metric
        self.sign = 1 if mode == "max" else -1
        self.patience = patience
        self.min_delta = min_delta
        self.best = -math.inf  # times `sign`
        self.num_without_gain = 0

    @property
    def rule(self) -> str:
        """When the run ends early, in words."""
        return f"ends early if {self.metric} does not improve in {self.patience} evaluations in a row"

    @property
    def reason(self) -> str | None:
        """Why the run ends now; None if it goes on."""
        if self.num_without_gain < self.patience:
            return None
        if self.best == -math.inf:
            return f"{self.metric} was no number in {self.num_without_gain} evaluations"
        return f"{self.metric} has not improved on {self.sign * self.best:.4g} in {self.num_without_gain} evaluations"

    def update(self, metrics: Mapping[str, float]) -> None:
        """Note the metrics of one evaluation, each time once. Raises InputError if the metric is not among them."""
        if self.metric not in metrics:
            raise InputError(
                f"stopping.metric={self.metric}: an evaluation has no such metric. It has: {listed(sorted(metrics))}."
            )
        value = self.sign * metrics[self.metric]
        if value > self.best + self.min_delta:
            self.best, self.num_without_gain = value, 0
        else:
            self.num_without_gain += 1

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "num_without_gain": self.num_without_gain}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best, self.num_without_gain = state["best"], int(state["num_without_gain"])
