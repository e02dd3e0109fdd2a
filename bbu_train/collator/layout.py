"""Samples into rows: all of a Batch but where each sample begins, which is what a collator decides."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bbu_train.collator.sizes import sizes
from bbu_train.collator.vision import lay_pictures
from bbu_train.ops.chunked_cross_entropy import IGNORED
from bbu_train.types.batch import Batch, Counts, Encoded, MemoryIndex
from bbu_train.types.samples import PictureFormat, Role

PADDING = -1


class Collator:
    """Samples to a Batch, for pictures of this format.

    `max_tokens` and `too_long` say how long a sample may be and what becomes of a longer one; the plan of the run
    applies them before anything is laid out. Nothing is ever truncated.
    """

    def __init__(self, picture_format: PictureFormat, max_tokens: int, too_long: str):
        self.picture_format = picture_format
        self.max_tokens = max_tokens
        self.too_long = too_long


def lay(
    samples: Sequence[Encoded], starts: Sequence[int], num_rows: int, row_tokens: int, picture_format: PictureFormat
) -> Batch:
    """Write `samples` into rows; `starts` are their first positions in the flattened rows, ascending.

    What no sample covers is padding. A sample never goes over the end of a row.
    """
    size = num_rows * row_tokens
    ends = [start + len(sample.input_ids) for start, sample in zip(starts, samples, strict=True)]
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    place = torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    text_positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    position_ids = torch.cat([text_positions[None], torch.cat([sample.position_ids for sample in samples], 1)])
    cu_seqlens = torch.tensor(sorted({0, *starts, *ends, size}), dtype=torch.int32)
    supervised, labels, roles = _supervision(samples, starts)
    vision, teachers, image_positions = lay_pictures(samples, starts, picture_format)
    return Batch(
        sample_ids=tuple(sample.sample_id for sample in samples),
        input_ids=_scatter(torch.cat([sample.input_ids for sample in samples]), place, size, 0).view(num_rows, -1),
        position_ids=_scatter(position_ids, place, size, 0).view(4, num_rows, -1),
        sample_of_token=_scatter(torch.arange(len(samples)).repeat_interleave(lengths), place, size, PADDING).view(
            num_rows, -1
        ),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(cu_seqlens.diff().max()),
        image_positions=image_positions,
        vision=vision,
        teachers=teachers,
        supervised_positions=supervised,
        labels=labels,
        label_roles=roles,
        memory=_memory(samples, starts, picture_format),
        boxes_cxcywh=torch.cat([sample.boxes_cxcywh for sample in samples]),
        sample_of_object=torch.cat([torch.full((len(s.captions),), i) for i, s in enumerate(samples)]),
        objects_per_sample=tuple(len(sample.captions) for sample in samples),
        caption_ids=_captions(samples),
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


def _scatter(values: Tensor, place: Tensor, size: int, fill: int) -> Tensor:
    out = values.new_full((*values.shape[:-1], size), fill)
    out[..., place] = values
    return out


def _supervision(samples: Sequence[Encoded], starts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that predict an answer token, that token and its role. A sample's first token is never predicted:
    what lies before it belongs to another sample."""
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


def _memory(samples: Sequence[Encoded], starts: Sequence[int], picture_format: PictureFormat) -> MemoryIndex:
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
        vision=_repeated(vision),
        vision_mask=_mask(vision),
        vision_centers=pad_sequence(centers, batch_first=True),
        text=torch.tensor(starts)[:, None] + _repeated(text),
        text_mask=_mask(text),
        text_positions=pad_sequence(text, batch_first=True),
    )


def _repeated(indices: Sequence[Tensor]) -> Tensor:
    """Padded with themselves, again and again: a GPU adds up what one entry gets as gradients one after the other, and
    one index for all padding would make it slow."""
    most = torch.arange(max(map(len, indices)))
    return torch.stack([its[most % len(its)] for its in indices])


def _mask(sequences: Sequence[Tensor]) -> Tensor:
    return pad_sequence([torch.ones(len(x), dtype=torch.bool) for x in sequences], batch_first=True)


def _captions(samples: Sequence[Encoded]) -> Tensor:
    captions = [caption for sample in samples for caption in sample.captions]
    if not captions:
        return torch.zeros(0, 1, dtype=torch.long)
    return pad_sequence(captions, batch_first=True, padding_value=IGNORED)
