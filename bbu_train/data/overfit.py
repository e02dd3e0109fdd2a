"""A few training samples as the whole data set: a component that works learns them by heart."""

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError


def load(source: Splits, num_samples: int, teachers: TeacherDraw) -> Splits:
    """Return the first `num_samples` training samples of the data set `source`, for training and for validation.

    What the reader changed is counted over all training samples of `source`. Raises InputError if
    `source` has fewer than `num_samples`.
    """
    if not 1 <= num_samples <= len(source.train):
        raise InputError(
            f"data.num_samples={num_samples}: expected a whole number from 1 to {len(source.train)}, the number of "
            "training samples."
        )
    samples = source.train[:num_samples]
    counts = {"train": source.reader_counts["train"]} if "train" in source.reader_counts else {}
    return Splits(samples, samples, teachers, counts)
