"""A curriculum: short conversations first, then longer ones too."""

from collections.abc import Callable, Sequence

from bbu_train.errors import InputError
from bbu_train.ops.numbers import is_number
from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.types.samples import PlannedStep, SampleVisit


class ShortestFirst:
    """Each step has `num_samples` samples, from a share of the shortest samples that grows epoch by epoch.

    Epoch e visits the shortest samples once each. Their fraction is `share` + (1 - `share`) e / `curriculum_epochs`,
    and 1 from epoch `curriculum_epochs` on (curriculum learning, Bengio et al. 2009). Lengths are those of the epoch's
    augmented views. If two samples are equally long, the first one counts as shorter. The last step of an epoch may
    have fewer samples.
    """

    def __init__(self, num_samples: int, share: float | int, curriculum_epochs: int, seed: int) -> None:
        if not is_number(share) or not 0 < share <= 1:
            raise InputError(f"sampler.share={share}: expected a number above 0, at most 1.")
        if type(curriculum_epochs) is not int or curriculum_epochs < 1:
            raise InputError(f"sampler.curriculum_epochs={curriculum_epochs}: expected a whole number, 1 or more.")
        self.share = share
        self.curriculum_epochs = curriculum_epochs
        self.fixed_samples = FixedSamples(num_samples, seed)

    def epoch(
        self,
        epoch: int,
        indices: Sequence[int],
        num_tokens: Callable[[SampleVisit], int],
        cost: Callable[[SampleVisit], int],
        name: Callable[[SampleVisit], str],
    ) -> list[PlannedStep]:
        """Return the steps of one epoch over `indices`. They depend only on the seed, the epoch and the lengths."""
        by_length = sorted(indices, key=lambda index: num_tokens(SampleVisit(epoch, index)))
        share = self.share + (1 - self.share) * min(1, epoch / self.curriculum_epochs)
        shortest = by_length[: max(1, round(share * len(by_length)))]
        return self.fixed_samples.epoch(epoch, sorted(shortest), num_tokens, cost, name)
