"""From the plan of a run to the batches of this rank."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch.utils.data import DataLoader, Dataset

from bbu_train.errors import InputError, all_problems
from bbu_train.types import Batch, Draw, Encoded, Picture, Sample, Step

log = logging.getLogger(__name__)
Part = tuple[Draw, ...]


class Source:
    """The samples of a split, each with its teachers of an epoch.

    `teachers_of(sample, epoch)` draws them; `builder` writes the conversation; `max_tokens` and `too_long` say how
    long one may be, and whether a longer one is an "error" or left out ("drop").
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        teachers_of: Callable[[Sample, int], tuple[Picture, ...]],
        builder,
        max_tokens: int,
        too_long: str,
    ):
        if too_long not in ("error", "drop"):
            raise InputError(f"collator.too_long={too_long} is unknown; take error or drop.")
        self.samples = samples
        self.teachers_of = teachers_of
        self.builder = builder
        self.max_tokens = max_tokens
        self.too_long = too_long
        self.num_tokens: Callable[[Draw], int] = cache(self._num_tokens)

    def encode(self, draw: Draw) -> Encoded:
        sample = self.samples[draw.index]
        teachers = self.teachers_of(sample, draw.epoch)
        return self.builder.encode(self.builder.converse(sample, teachers, with_answer=True))

    def admissible(self, epoch: int) -> list[int]:
        """The samples that are short enough in this epoch; a longer one is an error or left out, never cut."""
        lengths = [self.num_tokens(Draw(epoch, i)) for i in range(len(self.samples))]
        longer = [i for i, length in enumerate(lengths) if length > self.max_tokens]
        if longer and self.too_long == "error":
            raise all_problems(
                f"Samples are longer than collator.max_tokens={self.max_tokens}",
                [f"{self.samples[i].id}: {lengths[i]} tokens in epoch {epoch}" for i in longer],
                "Raise collator.max_tokens, lower model.max_pixels, or leave them out with collator.too_long=drop.",
            )
        if longer:
            log.warning("epoch %d: %d samples over %d tokens are left out", epoch, len(longer), self.max_tokens)
        if len(longer) == len(self.samples):
            raise InputError(f"No sample of epoch {epoch} has at most collator.max_tokens={self.max_tokens} tokens.")
        left_out = set(longer)
        return [i for i in range(len(self.samples)) if i not in left_out]

    def names(self, step: Step) -> list[str]:
        """The ids of a step's samples."""
        return [self.samples[draw.index].id for row in step for draw in row]

    def tokens_of(self, step: Step) -> int:
        """Of a step's samples, without padding."""
        return sum(self.num_tokens(draw) for row in step for draw in row)

    def _num_tokens(self, draw: Draw) -> int:
        sample = self.samples[draw.index]
        return self.builder.num_tokens(sample, self.teachers_of(sample, draw.epoch))


def sources(data, builder, collator) -> tuple[Source, Source]:
    """The training and the validation split; the teachers of both come from the training split's pool."""
    limits = collator.max_tokens, collator.too_long
    pool = data.pool
    train = Source(data.train, lambda sample, epoch: data.teachers.draw(sample, epoch, pool), builder, *limits)
    validation = Source(
        data.validation, lambda sample, _: data.teachers.draw_validation(sample, pool), builder, *limits
    )
    return train, validation


def in_order(source: Source, num_samples: int) -> list[Step]:
    """Every sample once, in order, `num_samples` at a time."""
    draws = [Draw(0, i) for i in source.admissible(0)]
    return [(tuple(draws[i : i + num_samples]),) for i in range(0, len(draws), num_samples)]


def plan(sampler, source: Source, num_steps: int) -> list[Step]:
    """Every step of the run, fixed before anything is loaded: a resumed run simply goes on in the same list."""
    steps: list[Step] = []
    epoch = 0
    while len(steps) < num_steps:
        steps += sampler.epoch(epoch, source.admissible(epoch), source.num_tokens)
        epoch += 1
    return steps[:num_steps]


def split(step: Step, num_parts: int, num_tokens: Callable[[Draw], int]) -> list[Part]:
    """A step's samples in `num_parts` parts of about equal length: micro-batches of ranks.

    The longest goes first, to the part that is shortest so far (Graham 1969). Planned rows stay whole where there
    are enough of them. A part may be empty.
    """
    units = step if len(step) >= num_parts else tuple((draw,) for row in step for draw in row)
    lengths = [sum(map(num_tokens, unit)) for unit in units]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for i in sorted(range(len(units)), key=lambda i: -lengths[i]):
        shortest = totals.index(min(totals))
        parts[shortest].append(i)
        totals[shortest] += lengths[i]
    return [tuple(draw for i in sorted(part) for draw in units[i]) for part in parts]


class Micro(Dataset):
    """Lists of parts to lists of batches; a part without samples becomes one unsupervised sample.

    So every rank runs the same modules the same number of times, and the losses do not notice.
    """

    def __init__(self, source: Source, collator: Callable[[Sequence[Encoded]], Batch], tasks: Sequence[tuple]):
        self.source = source
        self.collator = collator
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, i: int) -> list[Batch] | InputError:
        """An InputError is handed over, not raised: DataLoader would put the worker's traceback into its message."""
        parts, stand_in = self.tasks[i]
        try:
            return [self._batch(part, stand_in) for part in parts]
        except InputError as error:
            return error

    def _batch(self, part: Part, stand_in: Draw) -> Batch:
        if not part:
            return self.collator([self.source.encode(stand_in).unsupervised()])
        return self.collator([self.source.encode(draw) for draw in part])


def _as_they_are(made: list[Batch] | InputError) -> list[Batch] | InputError:
    """Batches are made whole in the workers: this keeps DataLoader from collating them again."""
    return made


def _batches_or_raise(made: list[Batch] | InputError) -> list[Batch]:
    if isinstance(made, InputError):
        raise made
    return made


def batches(
    source: Source, collator, steps: Sequence[Step], num_micro_batches: int, rank: int, num_ranks: int, num_workers: int
) -> Iterator[list[Batch]]:
    """For each step the micro-batches of this rank, read and encoded ahead by `num_workers` processes."""
    tasks = []
    for step in steps:
        parts = split(step, num_micro_batches * num_ranks, source.num_tokens)
        tasks.append((parts[rank::num_ranks], step[0][0]))
    loader = DataLoader(
        Micro(source, collator, tasks),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_they_are,
        pin_memory=torch.cuda.is_available(),
        # Forked workers share the samples' memory instead of each loading a copy.
        multiprocessing_context="fork" if num_workers else None,
    )
    return map(_batches_or_raise, iter(loader))  # iter() starts the workers now, not at the first step
