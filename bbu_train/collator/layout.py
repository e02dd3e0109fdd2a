"""Laying samples out in the rows of a Batch.

A collator decides where each sample begins; `lay_out` does all the rest, so that all collators give the same Batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bbu_train.collator.sizes import sizes
from bbu_train.collator.vision import lay_out_pictures
from bbu_train.ops.activations import Count
from bbu_train.ops.chunked_cross_entropy import IGNORED
from bbu_train.types.batch import Batch, Counts, Encoded, MemoryIndex
from bbu_train.types.samples import PictureFormat, Role

PADDING = -1


class Collator(ABC):
    """The settings that all collators share. A subclass is called with samples and returns a Batch.

    `max_tokens` limits the length of a sample, and `too_long` ("error" or "drop") tells what to do with a longer one.
    The plan of the run applies both before any sample is laid out. No sample is ever truncated.
    """

    def __init__(self, picture_format: PictureFormat, max_tokens: int, too_long: str) -> None:
        self.picture_format = picture_format
        self.max_tokens = max_tokens
        self.too_long = too_long

    @abstractmethod
    def num_positions(self, num_samples: Count, num_tokens: Count, longest: Count) -> Count:
        """Return the positions of a batch's rows, padding included.

        `longest` is the length of the longest sample. Arrays with an entry for each batch give an array.
        """


def lay_out(
    samples: Sequence[Encoded], starts: Sequence[int], num_rows: int, row_tokens: int, picture_format: PictureFormat
) -> Batch:
    """Return the Batch of `samples`, whose first tokens lie at `starts` in the flattened rows.

    `starts` must ascend, and no sample may cross the end of a row. Positions that no sample covers are padding.
    """
    size = num_rows * row_tokens
    ends = [start + len(sample.input_ids) for start, sample in zip(starts, samples, strict=True)]
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    positions = torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    sample_of_token = torch.arange(len(samples)).repeat_interleave(lengths)
    text_positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    position_ids = torch.cat([text_positions[None], torch.cat([sample.position_ids for sample in samples], 1)])
    cu_seqlens = torch.tensor(sorted({0, *starts, *ends, size}), dtype=torch.int32)
    supervised, labels, roles = _supervision(samples, starts)
    vision, teachers, image_positions = lay_out_pictures(samples, starts, picture_format)
    return Batch(
        sample_ids=tuple(sample.sample_id for sample in samples),
        input_ids=_scatter(torch.cat([sample.input_ids for sample in samples]), positions, size, 0).view(num_rows, -1),
        position_ids=_scatter(position_ids, positions, size, 0).view(4, num_rows, -1),
        sample_of_token=_scatter(sample_of_token, positions, size, PADDING).view(num_rows, -1),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(cu_seqlens.diff().max()),
        image_positions=image_positions,
        vision=vision,
        teachers=teachers,
        supervised_positions=supervised,
        labels=labels,
        label_roles=roles,
        memory=_index_memory(samples, starts, picture_format),
        boxes_cxcywh=torch.cat([sample.boxes_cxcywh for sample in samples]),
        sample_of_object=torch.cat([torch.full((len(s.captions),), i) for i, s in enumerate(samples)]),
        objects_per_sample=tuple(len(sample.captions) for sample in samples),
        caption_ids=_pad_captions(samples),
        annotated=torch.tensor([sample.annotated for sample in samples]),
        noise=torch.cat([sample.noise for sample in samples]),
        counts=Counts(
            teacher_tokens=int((roles == Role.TEACHER).sum()),
            student_tokens=int((roles == Role.STUDENT).sum()),
            objects=sum(len(sample.captions) for sample in samples),
            samples=sum(sample.annotated for sample in samples),
        ),
        sizes=sizes(samples, picture_format),
    )


def _scatter(values: Tensor, positions: Tensor, size: int, fill: int) -> Tensor:
    out = values.new_full((*values.shape[:-1], size), fill)
    out[..., positions] = values
    return out


def _supervision(samples: Sequence[Encoded], starts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions that predict an answer token, and these tokens and their roles.

    A sample's first token is never predicted, because the token before it belongs to another sample.
    """
    positions, labels, roles = [], [], []
    for sample, start in zip(samples, starts, strict=True):
        targets = sample.roles[1:].nonzero()[:, 0]
        positions.append(start + targets)
        labels.append(sample.input_ids[1 + targets])
        roles.append(sample.roles[1 + targets])
    if sum(map(len, labels)) == 0:
        none = torch.zeros(1, dtype=torch.long)
        return none, none, none
    return torch.cat(positions), torch.cat(labels), torch.cat(roles)


def _index_memory(samples: Sequence[Encoded], starts: Sequence[int], picture_format: PictureFormat) -> MemoryIndex:
    vision, centers, text, offset = [], [], [], 0
    merge_size = picture_format.merge_size
    for sample in samples:
        _, height, width = (sample.grid_thw[-1] // torch.tensor([1, merge_size, merge_size])).tolist()
        num_merged = height * width if picture_format.teachers_apart else len(sample.image_positions)
        vision.append(torch.arange(offset + num_merged - height * width, offset + num_merged))
        offset += num_merged
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        centers.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
        text.append(torch.arange(sample.memory_end))
    return MemoryIndex(
        vision=_pad_by_repeating(vision),
        vision_mask=_mask(vision),
        vision_centers=pad_sequence(centers, batch_first=True),
        text=torch.tensor(starts)[:, None] + _pad_by_repeating(text),
        text_mask=_mask(text),
        text_positions=pad_sequence(text, batch_first=True),
    )


def _pad_by_repeating(sequences: Sequence[Tensor]) -> Tensor:
    """Pad each sequence of indices to the longest by repeating it.

    A GPU adds the gradients of one entry one after the other, so a single index for all padding would be slow.
    """
    columns = torch.arange(max(map(len, sequences)))
    return torch.stack([indices[columns % len(indices)] for indices in sequences])


def _mask(sequences: Sequence[Tensor]) -> Tensor:
    """Return True for entries of the padded sequences, and False for padding."""
    return pad_sequence([torch.ones(len(indices), dtype=torch.bool) for indices in sequences], batch_first=True)


def _pad_captions(samples: Sequence[Encoded]) -> Tensor:
    captions = [caption for sample in samples for caption in sample.captions]
    if not captions:
        return torch.zeros(0, 1, dtype=torch.long)
    return pad_sequence(captions, batch_first=True, padding_value=IGNORED)
