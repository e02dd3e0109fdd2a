"""One row, samples end to end, no padding."""

from collections.abc import Sequence
from itertools import accumulate

from bbu_train.collator.layout import Collator, lay
from bbu_train.types import Batch, Encoded, PictureFormat


class Packed(Collator):
    """Samples one after another in a single row, their boundaries kept.

    The row is padded to a multiple of `row_multiple` tokens. Every new length makes a GPU's libraries look for kernels
    anew, which costs the host more than a few tokens cost the device.
    """

    def __init__(self, picture_format: PictureFormat, max_tokens: int, too_long: str, row_multiple: int):
        super().__init__(picture_format, max_tokens, too_long)
        self.row_multiple = row_multiple

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        ends = list(accumulate(len(sample.input_ids) for sample in samples))
        row_tokens = ends[-1] + -ends[-1] % self.row_multiple
        return lay(samples, [0, *ends[:-1]], 1, row_tokens, self.picture_format)
