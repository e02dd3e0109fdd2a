"""The full rate from the first step, or from the end of a linear warm-up, to the last."""

from dataclasses import dataclass

from bbu_train.errors import InputError


@dataclass(frozen=True)
class Constant:
    """What every group's rate is multiplied by for update number `step`, from 0: (step + 1) / w below w, then 1."""

    num_warmup_steps: int

    def __post_init__(self):
        if not isinstance(self.num_warmup_steps, int) or self.num_warmup_steps < 0:
            raise InputError(
                f"schedule.num_warmup_steps is {self.num_warmup_steps}: expected a whole number, 0 for no warm-up."
            )

    def __call__(self, step: int) -> float:
        return min((step + 1) / max(self.num_warmup_steps, 1), 1.0)
