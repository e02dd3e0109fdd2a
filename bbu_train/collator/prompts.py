"""Prompts for generation: one row for each sample, padded at the beginning."""

from collections.abc import Sequence

from bbu_train.collator.layout import lay_out
from bbu_train.types.batch import Batch, Encoded
from bbu_train.types.samples import PictureFormat


def left_pad(samples: Sequence[Encoded], picture_format: PictureFormat) -> Batch:
    """Lay prompts out so that all rows end together: the next tokens of all samples then share one column."""
    lengths = [len(sample.input_ids) for sample in samples]
    longest = max(lengths)
    starts = [(row + 1) * longest - length for row, length in enumerate(lengths)]
    return lay_out(samples, starts, len(samples), longest, picture_format)
