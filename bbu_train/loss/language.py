"""The language loss, apart for teacher and student answers."""

import torch
from jaxtyping import Float
from torch import Tensor

from bbu_train.types.batch import Batch, Counts
from bbu_train.types.outputs import Losses, Outputs
from bbu_train.types.samples import Role


class Language:
    """w_t sum CE(teacher tokens) / n_T + w_s sum CE(student tokens) / n_U.

    A criterion: called, it gives sums over a batch; `means` and `objective` divide them by the counts of the whole
    step, so that a step gives one gradient however it is split over micro-batches and ranks. A count of zero gives a
    term of zero that still hangs on the graph.
    """

    counted_by = {"teacher_lm": "teacher_tokens", "student_lm": "student_tokens"}

    def __init__(self, weights: dict[str, float]):
        self.weights = {"teacher_lm": weights["teacher"], "student_lm": weights["student"]}

    def __call__(self, outputs: Outputs, batch: Batch) -> Losses:
        """Sums over the answer tokens of each role."""
        return {
            name: torch.where(batch.label_roles == role, outputs.token_losses, 0).sum()
            for name, role in (("teacher_lm", Role.TEACHER), ("student_lm", Role.STUDENT))
        }

    def means(self, losses: Losses, counts: Counts) -> Losses:
        """Each sum divided by what it is a sum over; 0 where there is nothing."""
        return {name: loss / max(1, getattr(counts, self.counted_by[name])) for name, loss in losses.items()}

    def objective(self, losses: Losses, counts: Counts) -> Float[Tensor, ""]:
        """The weighted sum of the means: what is minimised."""
        sums = torch.stack(list(losses.values()))
        factors = [self.weights[name] / max(1, getattr(counts, self.counted_by[name])) for name in losses]
        # One product, and pinned memory, for which the host does not wait.
        factors = torch.tensor(factors, dtype=sums.dtype, pin_memory=sums.is_cuda)
        return sums @ factors.to(sums.device, non_blocking=True)
