"""Prompts that are to be written on: a row a sample, padded at the beginning."""

from collections.abc import Sequence

from bbu_train.collator.layout import lay
from bbu_train.types.batch import Batch, Encoded
from bbu_train.types.samples import PictureFormat


def left_pad(samples: Sequence[Encoded], picture_format: PictureFormat) -> Batch:
    """All rows end together, so that the next token of every sample comes into the same column."""
    lengths = [len(sample.input_ids) for sample in samples]
    longest = max(lengths)
    starts = [(row + 1) * longest - length for row, length in enumerate(lengths)]
    return lay(samples, starts, len(samples), longest, picture_format)
