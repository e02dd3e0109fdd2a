"""One row, samples end to end, no padding."""

from collections.abc import Sequence
from itertools import accumulate

from bbu_train.collator.layout import Collator, lay
from bbu_train.types.batch import Batch, Encoded


class Packed(Collator):
    """Samples one after another in a single row, their boundaries kept."""

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        ends = list(accumulate(len(sample.input_ids) for sample in samples))
        return lay(samples, [0, *ends[:-1]], 1, ends[-1], self.picture_format)
