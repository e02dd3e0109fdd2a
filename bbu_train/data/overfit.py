"""A few training samples as the whole data set: a component that works learns them by heart."""

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError


def load(of: Splits, num_samples: int, teachers: TeacherDraw) -> Splits:
    """Return the first `num_samples` training samples of the data set `of`, for training and for validation.

    Raises InputError if `of` has fewer.
    """
    if not 1 <= num_samples <= len(of.train):
        raise InputError(
            f"data.num_samples={num_samples}: expected a whole number from 1 to {len(of.train)}, the number of "
            "training samples."
        )
    samples = of.train[:num_samples]
    return Splits(samples, samples, teachers, of.num_dropped_boxes)
