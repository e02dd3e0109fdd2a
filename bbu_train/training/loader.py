"""The samples of a split, and from the steps that are planned of them to the batches of this rank."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from bbu_train.errors import InputError, all_problems
from bbu_train.runtime import preemption
from bbu_train.runtime.seeds import generator
from bbu_train.training.planning import Part, deal
from bbu_train.types.batch import Batch, Encoded
from bbu_train.types.samples import Draw, Picture, Sample, Step

NUM_KEPT = 4_000_000  # visits of a sample whose length and cost are kept, at 16 bytes each
Task = TypeVar("Task")
Made = TypeVar("Made")


class SampleSource:
    """The samples of a split, each as it is seen in an epoch and with its teachers of that epoch.

    `view_of(sample, epoch)` says how its student is seen, and `teachers_of(sample, epoch)` draws its teachers;
    `builder` writes the conversation; `cost_of` says what so many tokens and pictures of so many patches cost;
    `max_tokens` and `too_long` say how long a sample may be, and whether a longer one is an "error" or left out
    ("drop"); `seed` is that of each sample's noise. Lengths and costs are kept for the last epochs asked for, NUM_KEPT
    of them and one epoch at least.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        view_of: Callable[[Sample, int], Sample],
        teachers_of: Callable[[Sample, int], tuple[Picture, ...]],
        builder,
        cost_of: Callable[[int, Sequence[int]], int],
        max_tokens: int,
        too_long: str,
        seed: int,
    ):
        if too_long not in ("error", "drop"):
            raise InputError(f"collator.too_long={too_long} is unknown; take error or drop.")
        self.samples = samples
        self.view_of = view_of
        self.teachers_of = teachers_of
        self.builder = builder
        self.cost_of = cost_of
        self.max_tokens = max_tokens
        self.too_long = too_long
        self.seed = seed
        num_epochs_kept = max(1, NUM_KEPT // max(1, len(samples)))
        self._sizes_of: Callable[[int], tuple[array, array]] = lru_cache(num_epochs_kept)(self._measure)

    def num_tokens(self, draw: Draw) -> int:
        return self._sizes_of(draw.epoch)[0][draw.index]

    def cost(self, draw: Draw) -> int:
        return self._sizes_of(draw.epoch)[1][draw.index]

    def name(self, draw: Draw) -> str:
        return self.samples[draw.index].id

    def encode(self, draw: Draw) -> Encoded:
        sample = self.view_of(self.samples[draw.index], draw.epoch)
        teachers = self.teachers_of(sample, draw.epoch)
        encoded = self.builder.encode(self.builder.converse(sample, teachers, with_answer=True))
        random = generator("noise", self.seed, draw.epoch, sample.id)
        return replace(encoded, noise=torch.from_numpy(random.random(tuple(encoded.noise.shape), dtype="float32")))

    def admissible(self, epoch: int) -> list[int]:
        """The samples that are short enough in this epoch; a longer one is an error or left out, never cut."""
        lengths, _ = self._sizes_of(epoch)
        longer = [i for i, length in enumerate(lengths) if length > self.max_tokens]
        if longer and self.too_long == "error":
            raise all_problems(
                f"Samples are longer than collator.max_tokens={self.max_tokens}",
                [f"{self.samples[i].id}: {lengths[i]} tokens in epoch {epoch}" for i in longer],
                "Raise collator.max_tokens, lower model.max_pixels, or leave them out with collator.too_long=drop.",
            )
        if len(longer) == len(self.samples):
            raise InputError(f"No sample of epoch {epoch} has at most collator.max_tokens={self.max_tokens} tokens.")
        left_out = set(longer)
        return [i for i in range(len(self.samples)) if i not in left_out]

    def names(self, step: Step) -> list[str]:
        """The ids of a step's samples."""
        return [self.name(draw) for row in step for draw in row]

    def _measure(self, epoch: int) -> tuple[array, array]:
        """Tokens and cost of every sample."""
        num_tokens, costs = array("q"), array("q")
        for sample in self.samples:
            length, cost = self._size(epoch, sample)
            num_tokens.append(length)
            costs.append(cost)
        return num_tokens, costs

    def _size(self, epoch: int, sample: Sample) -> tuple[int, int]:
        sample, teachers = self.view_of(sample, epoch), self.teachers_of(sample, epoch)
        num_tokens = self.builder.num_tokens(sample, teachers)
        return num_tokens, self.cost_of(num_tokens, self.builder.num_patches(sample, teachers))


def sources(data, view_of, builder, cost_of, collator) -> tuple[SampleSource, SampleSource]:
    """The training and the validation split, of which only training students are seen by `view_of`.

    The teachers of both come from the training split's pool, as they are: so what is made of them can be kept. Noise
    has the seed of the teachers' draw.
    """
    how = builder, cost_of, collator.max_tokens, collator.too_long, data.teachers.seed
    pool = data.pool
    train = SampleSource(data.train, view_of, lambda sample, epoch: data.teachers.draw(sample, epoch, pool), *how)
    of_validation = data.teachers.draw_validation
    validation = SampleSource(data.validation, as_it_is, lambda sample, _: of_validation(sample, pool), *how)
    return train, validation


def as_it_is(sample: Sample, _: int) -> Sample:
    """The view of a sample that is evaluated."""
    return sample


class _Made(Dataset):
    """What `make` makes of each task.

    An InputError is handed over, not raised: DataLoader would put the worker's traceback into its message.
    """

    def __init__(self, make: Callable):
        self.make = make

    def __getitem__(self, task):
        try:
            return self.make(task)
        except InputError as error:
            return error


def _whole(made):
    """Batches are made whole in the workers: this keeps DataLoader from collating them again."""
    return made


def _made_or_raise(made):
    if isinstance(made, InputError):
        raise made
    return made


def ahead(make: Callable[[Task], Made], tasks: Iterable[Task], num_workers: int) -> Iterator[Made]:
    """`make(task)` of each task, in order, made ahead by `num_workers` processes, its tensors pinned for a GPU.

    Tasks are asked for as the workers get to them.
    """
    loader = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=tasks,
        num_workers=num_workers,
        collate_fn=_whole,
        pin_memory=torch.cuda.is_available(),
        # Forked workers share the samples' memory instead of each loading a copy.
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=preemption.end_with_parent,
    )
    with preemption.signals_blocked():
        made = iter(loader)  # starts the workers now, not at the first step
    return map(_made_or_raise, made)


def batches(
    source: SampleSource,
    collator,
    steps: Iterable[Step],
    num_micro_batches: int,
    rank: int,
    num_ranks: int,
    num_workers: int,
) -> Iterator[list[Batch]]:
    """For each step the micro-batches of this rank, read and encoded `ahead`.

    A part without samples becomes a stand-in, unsupervised: so every rank runs the same modules the same number of
    times, and the losses do not notice.
    """

    def laid(task: tuple[list[Part], Draw]) -> list[Batch]:
        parts, stand_in = task
        return [collator([*map(source.encode, part)] or [source.encode(stand_in).unsupervised()]) for part in parts]

    tasks = ((deal(step, num_ranks, num_micro_batches, source.cost)[rank], step[0][0]) for step in steps)
    return ahead(laid, tasks, num_workers)
