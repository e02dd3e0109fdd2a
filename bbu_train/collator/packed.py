"""One row, samples end to end, no padding."""

from collections.abc import Sequence
from itertools import accumulate

from bbu_train.collator.layout import lay
from bbu_train.types import Batch, Encoded, PictureFormat


class Packed:
    """Samples one after another in a single row, their boundaries kept.

    `max_tokens` and `too_long` say how long a sample may be and what becomes of a longer one; the plan of the run
    applies them before anything is laid out. Nothing is ever truncated.
    """

    def __init__(self, picture_format: PictureFormat, max_tokens: int, too_long: str):
        self.max_tokens = max_tokens
        self.too_long = too_long
        self.picture_format = picture_format

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        ends = list(accumulate(len(sample.input_ids) for sample in samples))
        return lay(samples, [0, *ends[:-1]], 1, ends[-1], self.picture_format)
