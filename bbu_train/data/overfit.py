"""A few training samples as the whole data set: what is learned by heart is scored on the same pictures."""

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError


def load(of: Splits, num_samples: int, teachers: TeacherDraw) -> Splits:
    """The first `num_samples` training samples of other data, to train on and to validate on.

    Raises InputError where there are fewer.
    """
    if not 1 <= num_samples <= len(of.train):
        raise InputError(
            f"data.num_samples={num_samples}: expected a whole number from 1 to the {len(of.train)} training samples "
            "that there are."
        )
    few = of.train[:num_samples]
    return Splits(few, few, teachers, of.num_dropped_boxes)
