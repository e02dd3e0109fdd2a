"""The samples of a split, and the batches that this rank makes of the planned steps."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bbu_train.collator.layout import Collator
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError
from bbu_train.runtime import preemption
from bbu_train.runtime.seeds import generator
from bbu_train.training.planning import MicroBatch, assign_micro_batches
from bbu_train.types.batch import Batch, Encoded
from bbu_train.types.samples import Picture, PlannedStep, Sample, SampleVisit
from bbu_train.types.too_long import TooLong

MAX_CACHED_SIZES = 4_000_000  # (epoch, sample) pairs whose sizes stay in memory, at 36 bytes each
SIZE_TYPES = "iqiiiiii"
"""The array type of each field of `SampleSize`."""
Task = TypeVar("Task")
Result = TypeVar("Result")


class SampleSize(NamedTuple):
    """What planning and the prediction of memory know of a sample's conversation before it is encoded.

    tokens           its tokens
    cost             its arithmetic
    pictures         its pictures
    patches          their patches
    student_patches  patches of the student's picture
    largest_teacher  patches of the largest teacher's picture, or 0
    objects          objects of the student's picture
    caption_tokens   tokens of its longest description, the end included, or 0
    """

    tokens: int
    cost: int
    pictures: int
    patches: int
    student_patches: int
    largest_teacher: int
    objects: int
    caption_tokens: int


class SampleSource:
    """The samples of a split, encoded. An augmented sample, and one with drawn teachers, depends on the epoch.

    `encode` augments a sample by `view_of(sample, epoch)`, draws its teachers by `teachers_of(sample, epoch)`, and
    encodes the conversation by `builder`. `cost_of(num_tokens, num_patches)` estimates the arithmetic of a sample.
    `too_long="error"` refuses a sample of more than `max_tokens`; "drop" leaves it out. `seed` decides the noise of
    each sample. Lengths and costs of the last epochs stay in memory: up to MAX_CACHED_SIZES, and always one epoch.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        view_of: Callable[[Sample, int], Sample],
        teachers_of: Callable[[Sample, int], tuple[Picture, ...]],
        builder: ConversationBuilder,
        cost_of: Callable[[int, Sequence[int]], int],
        max_tokens: int,
        too_long: str,
        seed: int,
    ):
        self.samples = samples
        self.view_of = view_of
        self.teachers_of = teachers_of
        self.builder = builder
        self.cost_of = cost_of
        self.max_tokens = max_tokens
        self.too_long = too_long
        self.seed = seed
        num_cached_epochs = max(1, MAX_CACHED_SIZES // max(1, len(samples)))
        self._sizes_of: Callable[[int], list[array]] = lru_cache(num_cached_epochs)(self._measure)

    def num_tokens(self, visit: SampleVisit) -> int:
        return self._sizes_of(visit.epoch)[0][visit.index]

    def cost(self, visit: SampleVisit) -> int:
        return self._sizes_of(visit.epoch)[1][visit.index]

    def sizes(self, epoch: int) -> list[np.ndarray]:
        """Return an array for each field of `SampleSize`, with an entry for each sample."""
        return [np.frombuffer(column, column.typecode) for column in self._sizes_of(epoch)]

    def name(self, visit: SampleVisit) -> str:
        return self.samples[visit.index].id

    def encode(self, visit: SampleVisit) -> Encoded:
        sample = self.view_of(self.samples[visit.index], visit.epoch)
        teachers = self.teachers_of(sample, visit.epoch)
        encoded = self.builder.encode(self.builder.converse(sample, teachers, with_answer=True))
        random = generator("noise", self.seed, visit.epoch, sample.id)
        return replace(encoded, noise=torch.from_numpy(random.random(tuple(encoded.noise.shape), dtype="float32")))

    def indices_within_limit(self, epoch: int) -> list[int]:
        """Return the indices of the samples that are short enough in this epoch. No sample is ever truncated."""
        lengths = self._sizes_of(epoch)[0]
        too_long = [i for i, length in enumerate(lengths) if length > self.max_tokens]
        if too_long and self.too_long == "error":
            longer = {SampleVisit(epoch, i): lengths[i] for i in too_long}
            raise TooLong.of_visits("collator.max_tokens", self.max_tokens, longer, self.name)
        if len(too_long) == len(self.samples):
            raise InputError(
                f"No sample of epoch {epoch} has at most collator.max_tokens={self.max_tokens} tokens: they have "
                f"{min(lengths):,} to {max(lengths):,}. Give collator.max_tokens={max(lengths)} to keep all, or lower "
                "model.max_pixels."
            )
        dropped = set(too_long)
        return [i for i in range(len(self.samples)) if i not in dropped]

    def names(self, step: PlannedStep) -> list[str]:
        """Return the ids of a step's samples."""
        return [self.name(visit) for row in step for visit in row]

    def _measure(self, epoch: int) -> list[array]:
        """Return the columns of the sizes of all samples."""
        columns = [array(kind) for kind in SIZE_TYPES]
        for sample in self.samples:
            for column, value in zip(columns, self._size(epoch, sample), strict=True):
                column.append(value)
        return columns

    def _size(self, epoch: int, sample: Sample) -> SampleSize:
        sample, teachers = self.view_of(sample, epoch), self.teachers_of(sample, epoch)
        num_tokens, patches = self.builder.num_tokens(sample, teachers), self.builder.num_patches(sample, teachers)
        objects = sample.student.objects or ()
        longest = max((self.builder.num_caption_tokens(item.description) for item in objects), default=0)
        return SampleSize(
            tokens=num_tokens,
            cost=self.cost_of(num_tokens, patches),
            pictures=len(patches),
            patches=sum(patches),
            student_patches=patches[-1],
            largest_teacher=max(patches[:-1], default=0),
            objects=len(objects),
            caption_tokens=longest,
        )


def sources(
    data: Splits,
    view_of: Callable[[Sample, int], Sample],
    builder: ConversationBuilder,
    cost_of: Callable[[int, Sequence[int]], int],
    collator: Collator,
) -> tuple[SampleSource, SampleSource]:
    """Return the training and the validation split. Only training students are augmented by `view_of`.

    The teachers of both splits come from the training pool and are never augmented, so that their features can be
    cached. The seeds of the teachers' draws also decide the noise: that of validation is the same in all runs.
    """
    pool, teachers = data.pool, data.teachers
    settings = builder, cost_of, collator.max_tokens, collator.too_long

    def draw(sample: Sample, epoch: int) -> tuple[Picture, ...]:
        return teachers.draw(sample, epoch, pool)

    def draw_validation(sample: Sample, _epoch: int) -> tuple[Picture, ...]:
        return teachers.draw_validation(sample, pool)

    train = SampleSource(data.train, view_of, draw, *settings, teachers.seed)
    return train, SampleSource(data.validation, unchanged, draw_validation, *settings, teachers.validation_seed)


def unchanged(sample: Sample, _epoch: int) -> Sample:
    """Return the sample itself: the view of a sample that is evaluated."""
    return sample


class _Results(Dataset[Result | InputError]):
    """`function(task)` for each task.

    An InputError is returned, not raised: DataLoader would put the worker's traceback into its message.
    """

    def __init__(self, function: Callable[[Task], Result]):
        self.function = function

    def __getitem__(self, task: Task) -> Result | InputError:
        try:
            return self.function(task)
        except InputError as error:
            return error


def _identity(result: Result) -> Result:
    """Stand in for DataLoader's collation: the workers return whole batches."""
    return result


def _raise_errors(result: Result | InputError) -> Result:
    if isinstance(result, InputError):
        raise result
    return result


def prefetch(function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int) -> Iterator[Result]:
    """Yield `function(task)` of each task, in order, computed ahead by `num_workers` processes.

    Tensors are pinned if there is a GPU. `tasks` is consumed lazily: only as many tasks are taken as the workers need.
    """
    loader = DataLoader(
        _Results(function),
        batch_size=None,
        sampler=tasks,
        num_workers=num_workers,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        # Forked workers share the samples' memory instead of each loading a copy.
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=preemption.end_with_parent,
    )
    with preemption.signals_blocked():
        results = iter(loader)  # starts the workers now, not at the first step
    return map(_raise_errors, results)


def batches(
    source: SampleSource,
    collator: Collator,
    steps: Iterable[PlannedStep],
    num_micro_batches: int,
    rank: int,
    num_ranks: int,
    num_workers: int,
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of this rank for each step, encoded ahead of time (`prefetch`).

    A micro-batch without samples becomes a stand-in without any loss, so that every rank runs the same modules equally
    often. The stand-in does not change the losses.
    """

    def encode_and_collate(task: tuple[list[MicroBatch], SampleVisit]) -> list[Batch]:
        micro_batches, stand_in = task
        return [
            collator([*map(source.encode, visits)] or [source.encode(stand_in).unsupervised()])
            for visits in micro_batches
        ]

    tasks = (
        (assign_micro_batches(step, num_ranks, num_micro_batches, source.cost)[rank], step[0][0]) for step in steps
    )
    return prefetch(encode_and_collate, tasks, num_workers)
