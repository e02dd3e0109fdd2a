"""Drawing teachers for a student picture: a function of (seed, epoch, sample) alone, whatever was drawn before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bbu_train.data.same_bytes import first_with_same_bytes
from bbu_train.errors import InputError, all_problems
from bbu_train.ops.numbers import is_count, is_number
from bbu_train.runtime.seeds import generator
from bbu_train.runtime.wording import count_of
from bbu_train.types.samples import Picture, Sample


@dataclass(frozen=True)
class TeacherDraw:
    """Draws teachers from the pool for samples whose data does not fix them; fixed teachers, even none, are kept.

    A training sample gets teachers with probability `teacher_ratio`. Their number is `num_teachers`, or uniform from
    [minimum, maximum]. Teachers are distinct and never the student's own picture: neither its file nor a copy of it.
    Raises InputError for arguments out of range and for a pool that is too small.
    """

    teacher_ratio: float | int
    num_teachers: int | Sequence[int]
    num_validation_teachers: int
    seed: int
    validation_seed: int

    def __post_init__(self) -> None:
        problems = []
        if not is_number(self.teacher_ratio) or not 0 <= self.teacher_ratio <= 1:
            problems.append(f"data.teachers.teacher_ratio={self.teacher_ratio}: expected a number from 0 to 1")
        if not _is_count_or_range(self.num_teachers):
            problems.append(
                f"data.teachers.num_teachers={self.num_teachers}: expected a whole number of at least 0, "
                "or [minimum, maximum]"
            )
        if not is_count(self.num_validation_teachers):
            problems.append(
                f"data.teachers.num_validation_teachers={self.num_validation_teachers}: "
                "expected a whole number of at least 0"
            )
        for key in ("seed", "validation_seed"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool):
                problems.append(f"data.teachers.{key}={value}: expected a whole number")
        if problems:
            raise all_problems("The draw of teachers", problems, "Set these keys in conf/data or as overrides.")

    def draw(self, sample: Sample, epoch: int, pool: Sequence[Picture]) -> tuple[Picture, ...]:
        """Return the teachers of a training sample, drawn by (seed, epoch, sample.id)."""
        if sample.teachers is not None:
            return sample.teachers
        random = generator("teachers", self.seed, epoch, sample.id)
        if random.random() >= self.teacher_ratio:
            return ()
        minimum, maximum = self._range
        num_teachers = int(random.integers(minimum, maximum + 1))
        return _draw_distinct(random, num_teachers, sample, pool, "data.teachers.num_teachers")

    def draw_validation(
        self, sample: Sample, pool: Sequence[Picture], key: str = "data.teachers.num_validation_teachers"
    ) -> tuple[Picture, ...]:
        """Return the teachers of a validation sample, drawn by (validation_seed, sample.id).

        They are the same at every evaluation, and in all runs that differ in `seed`. Errors call their number `key`.
        """
        if sample.teachers is not None:
            return sample.teachers
        random = generator("validation teachers", self.validation_seed, sample.id)
        return _draw_distinct(random, self.num_validation_teachers, sample, pool, key)

    def check_pool(self, train: Sequence[Sample], validation: Sequence[Sample], num_pool: int) -> None:
        """Raise InputError if the pool is too small: before the model loads, not in the middle of a run."""
        required = {}
        if self.teacher_ratio > 0 and any(sample.teachers is None for sample in train):
            maximum = self._range[1]
            required["num_teachers"] = maximum + 1 if maximum else 0  # the pool holds the student's own picture
        if any(sample.teachers is None for sample in validation):
            required["num_validation_teachers"] = self.num_validation_teachers
        most = {"num_teachers": max(0, num_pool - 1), "num_validation_teachers": num_pool}
        problems = [
            f"data.teachers.{key}={getattr(self, key)} needs {num_required}; data.teachers.{key}={most[key]} works"
            for key, num_required in required.items()
            if num_pool < num_required
        ]
        if problems:
            what = f"The pool of teachers holds {count_of(num_pool, 'different picture')}"
            raise all_problems(what, problems, "Add training pictures, or give the values named.")

    @property
    def _range(self) -> tuple[int, int]:
        if isinstance(self.num_teachers, int):
            return self.num_teachers, self.num_teachers
        minimum, maximum = self.num_teachers
        return minimum, maximum


def _is_count_or_range(value: object) -> bool:
    numbers = list(value) if isinstance(value, list | tuple) else [value, value]
    return len(numbers) == 2 and all(map(is_count, numbers)) and numbers[0] <= numbers[1]


def _draw_distinct(
    random: np.random.Generator, num_teachers: int, sample: Sample, pool: Sequence[Picture], key: str
) -> tuple[Picture, ...]:
    """Return `num_teachers` pictures of the pool with contents that differ from each other and from the student's."""
    chosen: list[Picture] = []
    order = _shuffle(random, len(pool))
    while len(chosen) < num_teachers:
        index = next(order, None)
        if index is None:
            raise InputError(
                f"{sample.id} needs {num_teachers} teachers, but of the pool's {count_of(len(pool), 'picture')} only "
                f"{len(chosen)} differ from it and from each other. Add training pictures or lower {key}."
            )
        if first_with_same_bytes(pool[index], (sample.student, *chosen)) is None:
            chosen.append(pool[index])
    return tuple(chosen)


def _shuffle(random: np.random.Generator, size: int) -> Iterator[int]:
    """Yield 0 ... size - 1 in random order: a lazy Fisher-Yates shuffle that stores only the entries that moved."""
    moved: dict[int, int] = {}
    for i in range(size):
        j = int(random.integers(i, size))
        yield moved.get(j, j)
        moved[j] = moved.get(i, i)
