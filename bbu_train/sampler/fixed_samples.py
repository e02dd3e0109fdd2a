"""Steps with a fixed number of samples."""

from collections.abc import Callable, Sequence

from bbu_train.errors import InputError
from bbu_train.ops.numbers import is_count
from bbu_train.sampler.shuffle import shuffle
from bbu_train.types.samples import PlannedStep, SampleVisit


class FixedSamples:
    """Each step has `num_samples` samples. An epoch visits every sample once; its last step may have fewer."""

    def __init__(self, num_samples: int, seed: int) -> None:
        if not is_count(num_samples, 1):
            raise InputError(f"sampler.num_samples={num_samples}: expected a whole number of at least 1")
        self.num_samples = num_samples
        self.seed = seed

    def epoch(
        self,
        epoch: int,
        indices: Sequence[int],
        num_tokens: Callable[[SampleVisit], int],
        cost: Callable[[SampleVisit], int],
        name: Callable[[SampleVisit], str],
    ) -> list[PlannedStep]:
        """Return the steps of one epoch over `indices`. They depend only on the seed and the epoch."""
        visits = shuffle(self.seed, epoch, indices)
        return [(tuple(visits[i : i + self.num_samples]),) for i in range(0, len(visits), self.num_samples)]
