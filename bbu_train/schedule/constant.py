"""A constant learning rate after a linear warm-up."""

from dataclasses import dataclass

from bbu_train.errors import InputError
from bbu_train.ops.numbers import is_count


@dataclass(frozen=True)
class Constant:
    """The factor m of every group's learning rate, as a function of the step alone. Steps count from 0.

    With w warm-up steps, m(step) = (step + 1) / w for step < w, then 1.
    """

    num_warmup_steps: int

    def __post_init__(self) -> None:
        if not is_count(self.num_warmup_steps):
            raise InputError(
                f"schedule.num_warmup_steps={self.num_warmup_steps}: expected a whole number, 0 for no warm-up"
            )

    def __call__(self, step: int) -> float:
        return min((step + 1) / max(self.num_warmup_steps, 1), 1.0)
