"""The language loss, with separate weights for teacher and student answers."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from bbu_train.errors import all_problems
from bbu_train.ops.numbers import is_number
from bbu_train.types.batch import Batch, Counts
from bbu_train.types.outputs import Losses, Outputs
from bbu_train.types.samples import Role


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise InputError that lists every weight of the loss that is no number of at least 0."""
    problems = [
        f"loss.{key}={weight}: expected a number, 0 (without this loss) or above"
        for key, weight in weights.items()
        if not is_number(weight) or weight < 0
    ]
    if problems:
        raise all_problems("The loss", problems, "Set these keys in conf/loss or as overrides.")


class LanguageLoss:
    """w_t sum CE(teacher tokens) / n_t + w_s sum CE(student tokens) / n_s.

    Calling the criterion returns sums over a batch. `means` and `objective` divide them by the counts of the whole
    step, so that the gradient does not depend on how a step is split into micro-batches and ranks. In the objective a
    count of 0 gives a term of 0 that is still part of the autograd graph; `means` leaves it out.
    """

    divisors = {"teacher_lm": "teacher_tokens", "student_lm": "student_tokens"}
    """For each loss, the field of `Counts` that its sum is divided by."""
    averaged = divisors
    """For each loss, the field of `Counts` that counts what it averages. If that is 0, `means` leaves the loss out."""

    def __init__(self, weights: dict[str, float]) -> None:
        check_weights({f"weights.{name}": weight for name, weight in weights.items()})
        self.weights = {"teacher_lm": weights["teacher"], "student_lm": weights["student"]}

    def __call__(self, outputs: Outputs, batch: Batch) -> Losses:
        """Return the sums over the answer tokens of each role."""
        return {
            name: torch.where(batch.label_roles == role, outputs.token_losses, 0).sum()
            for name, role in (("teacher_lm", Role.TEACHER), ("student_lm", Role.STUDENT))
        }

    def means(self, losses: Losses, counts: Counts) -> Losses:
        """Divide each sum by its count. A loss without anything to average is left out: it is undefined, not 0."""
        return {
            name: loss / getattr(counts, self.divisors[name])
            for name, loss in losses.items()
            if getattr(counts, self.averaged[name]) > 0
        }

    def objective(self, losses: Losses, counts: Counts) -> Float[Tensor, ""]:
        """Return the weighted sum of the means, which training minimises."""
        sums = torch.stack(list(losses.values()))
        factors = [self.weights[name] / max(1, getattr(counts, self.divisors[name])) for name in losses]
        # One product, and a copy from pinned memory, for which the host does not wait.
        factors = torch.tensor(factors, dtype=sums.dtype, pin_memory=sums.is_cuda)
        return sums @ factors.to(sums.device, non_blocking=True)
