"""The sizes of the micro-batches of a plan, and the one that needs most memory, before any sample is encoded.

The largest step need not hold the largest micro-batch, nor the longest one: tokens, patches, caption slots and
supervised tokens are counted after the samples are dealt to ranks and micro-batches. Token counts, patches, objects and
captions of a sample are known without reading its picture. One size is a bound: the text before a student's answer is
taken to have all tokens of the conversation.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import islice
from typing import NamedTuple

import numpy as np

from bbu_train.collator.layout import Collator
from bbu_train.ops.activations import Count, MicroBatchSizes
from bbu_train.training.loader import SampleSize, SampleSource
from bbu_train.training.planning import MicroBatch, split
from bbu_train.types.batch import Batch
from bbu_train.types.samples import PlannedStep

STEPS_AT_ONCE = 4096  # steps whose micro-batches are measured together


class LargestMicroBatch(NamedTuple):
    """The micro-batch with the largest score: its samples, to encode and run it, its sizes and the score."""

    visits: MicroBatch
    sizes: MicroBatchSizes
    score: int


def find_largest(
    steps: Iterable[PlannedStep],
    source: SampleSource,
    collator: Collator,
    num_parts: int,
    score: Callable[[MicroBatchSizes], Count],
) -> LargestMicroBatch | None:
    """Return the micro-batch with the largest `score` of all `steps`, each split into `num_parts` over all ranks.

    `score` is called with arrays, with one entry for each micro-batch. Without steps there is none.
    """
    largest: LargestMicroBatch | None = None
    remaining = iter(steps)
    while some := list(islice(remaining, STEPS_AT_ONCE)):
        micro_batches = [part for step in some for part in _split(step, num_parts, source) if part]
        sizes = measure(micro_batches, source, collator)
        scores = np.asarray(score(sizes))
        best = int(scores.argmax())
        if largest is None or scores[best] > largest.score:
            values = {field.name: int(getattr(sizes, field.name)[best]) for field in fields(sizes)}
            largest = LargestMicroBatch(micro_batches[best], MicroBatchSizes(**values), int(scores[best]))
    return largest


def most_samples(steps: Iterable[PlannedStep], num_ranks: int) -> int:
    """Return the most samples that a rank can have in one of `steps`."""
    return max((-(-sum(map(len, step)) // num_ranks) for step in steps), default=1)


def _split(step: PlannedStep, num_parts: int, source: SampleSource) -> list[MicroBatch]:
    if num_parts == 1:
        return [tuple(visit for row in step for visit in row)]
    return split(step, num_parts, source.cost)


def measure(micro_batches: list[MicroBatch], source: SampleSource, collator: Collator) -> MicroBatchSizes:
    """Return the sizes of micro-batches, none of them empty, as arrays with an entry for each."""
    size = _sizes_of_samples(micro_batches, source)
    starts = np.cumsum([0, *map(len, micro_batches)])[:-1]

    def total(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts)

    def largest(values: np.ndarray) -> np.ndarray:
        return np.maximum.reduceat(values, starts)

    picture_format = collator.picture_format
    merged = size.patches // picture_format.merge_size**2
    apart = picture_format.teachers_apart
    num_samples = np.array([len(visits) for visits in micro_batches])
    answers = source.builder.num_answer_tokens(size.tokens, size.pictures, merged)
    return MicroBatchSizes(
        samples=num_samples,
        positions=collator.num_positions(num_samples, total(size.tokens), largest(size.tokens)),
        token_squares=total(size.tokens**2),
        supervised=total(answers),
        patches=total(size.student_patches if apart else size.patches),
        other_patches=largest(size.largest_teacher if apart else 0 * size.patches),
        pictures=total(size.pictures),
        merged=total(merged),
        memory_image=largest(size.student_patches // picture_format.merge_size**2),
        memory_text=largest(size.tokens),
        objects=total(size.objects),
        max_objects=largest(size.objects),
        caption_tokens=largest(size.caption_tokens),
    )


def sizes_of(batch: Batch) -> MicroBatchSizes:
    """Return the exact sizes of a batch that was encoded."""
    teachers = [len(teacher.vision.patches) for teacher in batch.teachers]
    lengths = batch.sample_of_token[batch.sample_of_token >= 0].bincount()
    return MicroBatchSizes(
        samples=len(batch.sample_ids),
        positions=batch.input_ids.numel(),
        token_squares=int((lengths**2).sum()),
        supervised=len(batch.labels),
        patches=len(batch.vision.patches),
        other_patches=max(teachers, default=0),
        pictures=len(batch.vision.grid_thw) + len(batch.teachers),
        merged=len(batch.image_positions),
        memory_image=batch.memory.vision.shape[1],
        memory_text=batch.memory.text.shape[1],
        objects=len(batch.sample_of_object),
        max_objects=max(batch.objects_per_sample),
        caption_tokens=batch.caption_ids.shape[1],
    )


def _sizes_of_samples(micro_batches: list[MicroBatch], source: SampleSource) -> SampleSize:
    """Return the sizes of the samples of all micro-batches, one after the other, as arrays."""
    visits = np.array([visit for visits in micro_batches for visit in visits])
    columns = np.empty((len(SampleSize._fields), len(visits)), dtype=np.int64)
    for epoch in np.unique(visits[:, 0]).tolist():
        is_in_epoch = visits[:, 0] == epoch
        for column, values in zip(columns, source.sizes(epoch), strict=True):
            column[is_in_epoch] = values[visits[is_in_epoch, 1]]
    return SampleSize(*columns)
