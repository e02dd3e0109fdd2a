"""Linear warm-up, then half a cosine down to a share of the learning rate."""

import math
from dataclasses import dataclass

from bbu_train.errors import all_problems
from bbu_train.ops.numbers import is_count, is_number


@dataclass(frozen=True)
class WarmupCosine:
    """The factor m of every group's learning rate, as a function of the step alone. Steps count from 0.

    With w warm-up steps, n steps, final ratio r and the peak at p = max(w - 1, 0):

        m(step) = (step + 1) / w                                               step < w
        m(step) = r + (1 - r) / 2 * (1 + cos(pi * (step - p) / (n - 1 - p)))   otherwise

    So no update is lost to a rate of 0: the first has 1 / w (1 without warm-up), step p has 1, and the last, n - 1, has
    r. After the last step the factor stays r.
    """

    num_steps: int
    num_warmup_steps: int
    final_ratio: float

    def __post_init__(self) -> None:
        problems = []
        if not is_count(self.num_steps):
            problems.append(f"schedule.num_steps={self.num_steps}: expected a whole number, 0 for no training")
        if not is_count(self.num_warmup_steps):
            problems.append(
                f"schedule.num_warmup_steps={self.num_warmup_steps}: expected a whole number, 0 for no warm-up"
            )
        elif self.num_warmup_steps > self.num_steps:
            problems.append(
                f"schedule.num_warmup_steps={self.num_warmup_steps} is above steps={self.num_steps}: the full rate "
                f"would never be reached. Expected at most {self.num_steps}"
            )
        if not is_number(self.final_ratio) or not 0 <= self.final_ratio <= 1:
            problems.append(f"schedule.final_ratio={self.final_ratio}: expected a share of the rate, from 0 to 1")
        if problems:
            raise all_problems("schedule", problems, "Change them under `schedule`, or the number of `steps`.")

    def __call__(self, step: int) -> float:
        if step < self.num_warmup_steps:
            return (step + 1) / self.num_warmup_steps
        peak = max(self.num_warmup_steps - 1, 0)
        progress = min((step - peak) / max(self.num_steps - 1 - peak, 1), 1.0)
        return self.final_ratio + (1 - self.final_ratio) / 2 * (1 + math.cos(math.pi * progress))
