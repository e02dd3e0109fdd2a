"""`Splits`: the training and validation samples that every data set (conf/data) returns."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bbu_train.data.annotations import Reading
from bbu_train.data.findings import ReaderCounts, count_changed_objects
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.types.samples import Picture, Sample

MAX_UNUSED = 100  # kinds of unused elements that are counted, the most frequent ones: keys may differ in every line


@dataclass(frozen=True)
class Splits:
    """The samples of a run, and how their teachers are drawn.

    `reader_counts` says by split, "train" and "validation", what the reader changed and did not use. Raises InputError
    if the pool of teachers is too small for the draw.
    """

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    teachers: TeacherDraw
    reader_counts: Mapping[str, ReaderCounts]

    def __post_init__(self) -> None:
        self.teachers.check_pool(self.train, self.validation, len(self.pool))

    @cached_property
    def pool(self) -> tuple[Picture, ...]:
        """The pictures that may be teachers, also in validation: the annotated students of all training samples."""
        return tuple(sample.student for sample in self.train if sample.student.objects is not None)

    def with_validation_teachers(self, sample: Sample, num_teachers: int) -> Sample:
        """Return `sample` with `num_teachers` teachers, drawn as in validation even if its data fixes them.

        Raises InputError, about the programs' argument `teachers`, if there are too few pictures for it.
        """
        if num_teachers > len(self.pool):
            raise InputError(
                f"teachers={num_teachers}: teachers are drawn from the run's annotated training pictures, and it has "
                f"{len(self.pool):,}. Take at most {len(self.pool)}."
            )
        draw = replace(self.teachers, num_validation_teachers=num_teachers)
        return replace(sample, teachers=draw.draw_validation(replace(sample, teachers=None), self.pool, "teachers"))


def splits_of(readings: Mapping[str, Sequence[Reading]], teachers: TeacherDraw) -> Splits:
    """Return the samples of both splits, "train" and "validation", with what the reader changed and did not use."""
    train, validation = (
        tuple(reading.sample for reading in readings[name] if reading.sample) for name in ("train", "validation")
    )
    return Splits(train, validation, teachers, {name: _count(split) for name, split in readings.items()})


def _count(readings: Iterable[Reading]) -> ReaderCounts:
    changed: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for reading in readings:
        changed.update(count_changed_objects(reading.findings))
        unused.update(reading.unused)
    return ReaderCounts(dict(changed), dict(unused.most_common(MAX_UNUSED)))
