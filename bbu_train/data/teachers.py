"""Which examples a student picture gets: a function of (seed, epoch, sample), never of who drew before."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bbu_train.errors import InputError, all_problems
from bbu_train.ops.numbers import is_count, is_number
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Picture, Sample


@dataclass(frozen=True)
class TeacherDraw:
    """Draws teachers from the pool for samples whose data does not fix them; fixed teachers, also none, stay.

    A training sample gets teachers with probability `teacher_ratio`, then `num_teachers` of them: that number, or
    one drawn evenly from [least, most]. Teachers are distinct and never the student's own picture, neither its file
    nor a copy of it. Raises InputError for arguments out of range and for a pool that is too small.
    """

    teacher_ratio: float | int
    num_teachers: int | Sequence[int]
    num_validation_teachers: int
    seed: int

    def __post_init__(self):
        problems = []
        if not is_number(self.teacher_ratio) or not 0 <= self.teacher_ratio <= 1:
            problems.append(f"data.teachers.teacher_ratio={self.teacher_ratio}: expected a number from 0 to 1")
        if not _is_count_or_range(self.num_teachers):
            problems.append(
                f"data.teachers.num_teachers={self.num_teachers}: expected a number of at least 0, or [least, most]"
            )
        if not is_count(self.num_validation_teachers):
            problems.append(
                f"data.teachers.num_validation_teachers={self.num_validation_teachers}: expected a number of at least 0"
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            problems.append(f"data.teachers.seed={self.seed}: expected a whole number")
        if problems:
            raise all_problems("The draw of teachers", problems, "Set these keys in conf/data or as overrides.")

    def draw(self, sample: Sample, epoch: int, pool: Sequence[Picture]) -> tuple[Picture, ...]:
        """Teachers of a training sample, by (seed, epoch, sample.id)."""
        if sample.teachers is not None:
            return sample.teachers
        random = generator("teachers", self.seed, epoch, sample.id)
        if random.random() >= self.teacher_ratio:
            return ()
        least, most = self._range
        return _distinct(random, int(random.integers(least, most + 1)), sample, pool, "num_teachers")

    def draw_validation(self, sample: Sample, pool: Sequence[Picture]) -> tuple[Picture, ...]:
        """Teachers of a validation sample, by (seed, sample.id): the same at every evaluation."""
        if sample.teachers is not None:
            return sample.teachers
        random = generator("validation teachers", self.seed, sample.id)
        return _distinct(random, self.num_validation_teachers, sample, pool, "num_validation_teachers")

    def check_pool(self, train: Sequence[Sample], validation: Sequence[Sample], num_pool: int) -> None:
        """Raise for a pool that is too small before the model loads, not in the middle of a run."""
        wanted = {}
        if self.teacher_ratio > 0 and any(sample.teachers is None for sample in train):
            most = self._range[1]
            wanted["num_teachers"] = most + 1 if most else 0  # a training student lies in the pool itself
        if any(sample.teachers is None for sample in validation):
            wanted["num_validation_teachers"] = self.num_validation_teachers
        for key, num_wanted in wanted.items():
            if num_pool < num_wanted:
                raise InputError(
                    f"The pool of teachers holds {_pictures(num_pool)}, but data.teachers.{key}={getattr(self, key)} "
                    f"needs {num_wanted}. Add training pictures or lower data.teachers.{key}."
                )

    @property
    def _range(self) -> tuple[int, int]:
        if isinstance(self.num_teachers, int):
            return self.num_teachers, self.num_teachers
        least, most = self.num_teachers
        return least, most


def _is_count_or_range(value: object) -> bool:
    numbers = list(value) if isinstance(value, list | tuple) else [value, value]
    return len(numbers) == 2 and all(map(is_count, numbers)) and numbers[0] <= numbers[1]


def _pictures(num: int) -> str:
    return "1 picture" if num == 1 else f"{num} pictures"


def _distinct(
    random: np.random.Generator, num_wanted: int, sample: Sample, pool: Sequence[Picture], key: str
) -> tuple[Picture, ...]:
    chosen = []
    order = _shuffled(random, len(pool))
    while len(chosen) < num_wanted:
        index = next(order, None)
        if index is None:
            raise InputError(
                f"{sample.id} is to get {num_wanted} teachers, but of the pool's {_pictures(len(pool))} only "
                f"{len(chosen)} differ from it and from each other. Add training pictures or lower data.teachers.{key}."
            )
        if not any(_same_bytes(pool[index].path, other.path) for other in (sample.student, *chosen)):
            chosen.append(pool[index])
    return tuple(chosen)


def _shuffled(random: np.random.Generator, size: int) -> Iterator[int]:
    """0 ... size - 1 in random order, lazily: Fisher and Yates, with only the entries kept that have moved."""
    moved = {}
    for i in range(size):
        j = int(random.integers(i, size))
        yield moved.get(j, j)
        moved[j] = moved.get(i, i)


def _same_bytes(a: Path, b: Path) -> bool:
    """Whether two paths hold the same bytes: one file, a link to it, or a copy."""
    return a == b or (_num_bytes(a) == _num_bytes(b) and _digest(a) == _digest(b))


@cache
def _num_bytes(path: Path) -> int:
    return path.stat().st_size


@cache
def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
