"""Samples end to end in one row, without padding."""

from collections.abc import Sequence
from itertools import accumulate

from bbu_train.collator.layout import Collator, lay_out
from bbu_train.ops.activations import Count
from bbu_train.types.batch import Batch, Encoded


class PackedCollator(Collator):
    """All samples in a single row, one after the other. `Batch.cu_seqlens` keeps their boundaries."""

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        ends = list(accumulate(len(sample.input_ids) for sample in samples))
        return lay_out(samples, [0, *ends[:-1]], 1, ends[-1], self.picture_format)

    def num_positions(self, num_samples: Count, num_tokens: Count, longest: Count) -> Count:
        return num_tokens
