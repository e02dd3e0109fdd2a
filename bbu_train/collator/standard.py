"""A row a sample, padded at the end to the longest."""

from collections.abc import Sequence

from bbu_train.collator.layout import Collator, lay
from bbu_train.types.batch import Batch, Encoded


class Standard(Collator):
    """Each sample has a row of its own. Simple, and wasteful where lengths vary."""

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        longest = max(len(sample.input_ids) for sample in samples)
        starts = [i * longest for i in range(len(samples))]
        return lay(samples, starts, len(samples), longest, self.picture_format)
