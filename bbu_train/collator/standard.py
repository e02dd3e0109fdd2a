"""A row a sample, padded at the end to the longest."""

from collections.abc import Sequence

from bbu_train.collator.layout import lay
from bbu_train.types import Batch, Encoded, PictureFormat


class Standard:
    """Each sample has a row of its own. Simple, and wasteful where lengths vary.

    `max_tokens` and `too_long` say how long a sample may be and what becomes of a longer one; the plan of the run
    applies them before anything is laid out. Nothing is ever truncated.
    """

    def __init__(self, picture_format: PictureFormat, max_tokens: int, too_long: str):
        self.max_tokens = max_tokens
        self.too_long = too_long
        self.picture_format = picture_format

    def __call__(self, samples: Sequence[Encoded]) -> Batch:
        longest = max(len(sample.input_ids) for sample in samples)
        starts = [i * longest for i in range(len(samples))]
        return lay(samples, starts, len(samples), longest, self.picture_format)
