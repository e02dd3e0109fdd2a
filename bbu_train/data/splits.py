"""What every choice of data gives to a run."""

from dataclasses import dataclass, replace
from functools import cached_property

from bbu_train.data.teachers import TeacherDraw
from bbu_train.types.samples import Picture, Sample


@dataclass(frozen=True)
class Splits:
    """The samples of a run and how their teachers are drawn.

    `num_dropped_boxes` counts the invalid boxes that the config allowed to leave out.
    Raises InputError where the pool is too small for the draw.
    """

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    teachers: TeacherDraw
    num_dropped_boxes: int

    def __post_init__(self):
        self.teachers.check_pool(self.train, self.validation, len(self.pool))

    @cached_property
    def pool(self) -> tuple[Picture, ...]:
        """The pictures that may be teachers, in validation too: the annotated students of all training samples."""
        return tuple(sample.student for sample in self.train if sample.student.objects is not None)

    def with_validation_teachers(self, sample: Sample, num_teachers: int) -> Sample:
        """`sample` with so many teachers, drawn from its id as in validation, whatever its own data fixes."""
        draw = replace(self.teachers, num_validation_teachers=num_teachers)
        return replace(sample, teachers=draw.draw_validation(replace(sample, teachers=None), self.pool))
