"""One row for each sample, padded at the end to the longest sample."""

from collections.abc import Sequence

from bbu_train.collator.layout import Collator, lay_out
from bbu_train.ops.activations import Count
from bbu_train.types.batch import Batch, Encoded


class PaddedCollator(Collator):
    """Each sample has a row of its own. This is simple, but wasteful if lengths vary."""

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        longest = max(len(sample.input_ids) for sample in samples)
        starts = [i * longest for i in range(len(samples))]
        return lay_out(samples, starts, len(samples), longest, self.picture_format)

    def num_positions(self, num_samples: Count, num_tokens: Count, longest: Count) -> Count:
        return num_samples * longest
