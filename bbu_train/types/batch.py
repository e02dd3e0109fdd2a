"""The nouns: Sample -> Conversation -> Encoded -> Batch -> Outputs -> Losses.

Axis names, the same everywhere:

    tokens      tokens of one conversation
    rows        rows of a batch; row_tokens: tokens of a row, padding included
    segments    runs of tokens that attend to nothing outside themselves
    supervised  tokens that carry a language loss
    patches     14 x 14 pixel patches; merged: groups of 2 x 2 patches, one image token each
    pictures    pictures of a batch; samples: conversations of a batch
    objects     true boxes of a batch; caption: tokens of one description
    queries     object queries of the head; layers: its decoder layers; groups: of noised true boxes
    memory      what the head's decoder reads; width: the backbone's hidden size; model: the head's
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


class Role(IntEnum):
    """Whose answer a token belongs to. Only answer tokens, `<|im_end|>` included, carry a language loss."""

    NONE = 0
    TEACHER = 1
    STUDENT = 2


@dataclass(frozen=True)
class Object:
    """One annotated thing: its box in absolute pixels of the upright picture, and "type/property/extra"."""

    box_xyxy: tuple[float, float, float, float]
    description: str


def class_of(description: str) -> str:
    """The first level of "type/property/extra"."""
    return description.split("/", 1)[0]


@dataclass(frozen=True)
class View:
    """What is seen of a picture file: a part of it, turned over or not, in other colours.

    `width` and `height` are those of the upright picture, in which `part_xyxy` lies, in whole pixels. That part is
    resized, then mirrored from left to right (`left_right`) and from top to bottom (`top_bottom`); then brightness,
    contrast and saturation are multiplied by the factors of these names.
    """

    width: int
    height: int
    part_xyxy: tuple[int, int, int, int]
    left_right: bool
    top_bottom: bool
    brightness: float
    contrast: float
    saturation: float


@dataclass(frozen=True)
class Picture:
    """A picture file, its upright (EXIF-applied) size in pixels, and its objects; `None`: nobody annotated it.

    With a `view`, size and boxes are those of what is seen.
    """

    path: Path
    width: int
    height: int
    objects: tuple[Object, ...] | None
    view: View | None = None


@dataclass(frozen=True)
class Sample:
    """A student picture and, where the data fixes them, its teachers; `None`: they are drawn from the pool.

    `id` names the sample in every message, such as "train.jsonl:12".
    """

    id: str
    student: Picture
    teachers: tuple[Picture, ...] | None


@dataclass(frozen=True)
class PictureFormat:
    """How the vision tower takes pictures. Lengths in pixels; `merge_size` patches a side make one image token.

    A picture is resized to multiples of `patch_size * merge_size` with an area within [min_pixels, max_pixels].
    `teachers_apart`: each picture of a teacher comes by itself, so that what is made of it can be kept.
    """

    patch_size: int
    merge_size: int
    window_size: int
    min_pixels: int
    max_pixels: int
    teachers_apart: bool


@dataclass(frozen=True)
class Turn:
    """One question about one picture and its answer. `answer` is None where the model is to write it."""

    role: Role
    picture: Picture
    prompt: str
    answer: str | None


@dataclass(frozen=True)
class Conversation:
    """Teacher turns, and the student's turn last; the builder that made it says the system prompt."""

    sample_id: str
    turns: tuple[Turn, ...]

    @property
    def student(self) -> Turn:
        return self.turns[-1]


@dataclass(frozen=True)
class Encoded:
    """One conversation as numbers.

    `roles[i]` says whose answer token i belongs to. `position_ids` are Qwen2.5-VL's (time, height, width), from 0.
    `patches` are the raw bytes (channel, row, column) of 14 x 14 squares, in the order in which the vision tower
    merges them; `grid_thw` counts patches. The student's picture is the last. `memory_end` is the position of the
    first token of the student's answer: what lies before it is what the head may read.
    Boxes are cxcywh divided by the picture's width and height; `captions` end with the answer's end token.
    `annotated` is False where no detection loss applies. `noise` has four numbers of [0, 1) for each object, drawn by
    (seed, epoch, sample): what is random in a head's training begins there.
    """

    sample_id: str
    input_ids: Int[Tensor, "tokens"]
    roles: Int[Tensor, "tokens"]
    position_ids: Int[Tensor, "3 tokens"]
    image_positions: Int[Tensor, "merged"]
    patches: UInt8[Tensor, "patches 588"]
    grid_thw: Int[Tensor, "pictures 3"]
    memory_end: int
    boxes_cxcywh: Float[Tensor, "objects 4"]
    captions: tuple[Int[Tensor, "_"], ...]
    annotated: bool
    noise: Float[Tensor, "objects 4"]

    def unsupervised(self) -> "Encoded":
        """The same conversation without any loss: it keeps a rank or a micro-batch without samples in step."""
        return replace(
            self,
            roles=torch.zeros_like(self.roles),
            boxes_cxcywh=self.boxes_cxcywh[:0],
            captions=(),
            annotated=False,
            noise=self.noise[:0],
        )


class Draw(NamedTuple):
    """One visit to a sample: which epoch, and which sample of the split."""

    epoch: int
    index: int


Step = tuple[tuple[Draw, ...], ...]
"""The set of samples of one optimizer step, in the rows that its sampler planned; any layout may regroup them."""


@dataclass(frozen=True)
class Counts:
    """What the sums of a step are divided by: plain numbers, summed over all its micro-batches and ranks.

    `samples` counts the student pictures with annotations, those annotated as empty included.
    """

    teacher_tokens: int
    student_tokens: int
    objects: int
    samples: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Sizes:
    """What decides how much arithmetic some samples need: plain numbers, in which padding has no part.

    A square is the number of pairs of a query and a key among the tokens of a sample or of a caption, or among the
    patches of a picture or of a window of the vision tower; a causal mask leaves half of them. `patches` and the
    squares of pictures and windows are what the tower has to read: with `PictureFormat.teachers_apart` the students'
    pictures, as a cache is to hold the others. `merged` counts the image tokens of all pictures. `samples` counts those
    that the head reads, which are the annotated ones, and `memory` the entries of their memories; `caption_memory`
    counts pairs of a caption's token and an entry of its sample's memory, `object_memory` those of an object and such
    an entry, and `object_squares` those of two objects of a sample. What ends with `_seen` are those of the entries, or
    of the pairs, that are of an image token: a head may split it.
    """

    tokens: int
    token_squares: int
    supervised: int
    patches: int
    picture_squares: int
    window_squares: int
    merged: int
    samples: int
    memory: int
    memory_seen: int
    captions: int
    caption_tokens: int
    caption_squares: int
    caption_memory: int
    caption_memory_seen: int
    object_squares: int
    object_memory: int
    object_memory_seen: int


class Movable:
    """A frozen dataclass of tensors, and of such dataclasses, that can go to a device or into pinned memory."""

    def _map(self, function: Callable[[Tensor], Tensor]):
        changed = {
            f.name: function(value) if isinstance(value, Tensor) else value._map(function)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | Movable)
        }
        return replace(self, **changed)

    def to(self, device: torch.device | str):
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self):
        return self._map(Tensor.pin_memory)


@dataclass(frozen=True)
class VisionInputs(Movable):
    """All that the vision tower needs, its index arithmetic included, so that the device never waits for the host.

    `position_ids`, `window_index` and the two kinds of boundaries are those of transformers' `vision_utils`.
    """

    patches: UInt8[Tensor, "patches 588"]
    grid_thw: Int[Tensor, "pictures 3"]
    position_ids: Int[Tensor, "patches 2"]
    window_index: Int[Tensor, "merged"]
    cu_seqlens: Int[Tensor, "_"]
    cu_window_seqlens: Int[Tensor, "_"]
    max_seqlen: int
    max_window_seqlen: int


@dataclass(frozen=True)
class TeacherPicture:
    """A teacher's picture by itself. Two have the same `key` if they are the same bytes on the same grid.

    It is not Movable: it stays on the host until a model that has nothing of it asks for it.
    """

    key: bytes
    vision: VisionInputs


@dataclass(frozen=True)
class MemoryIndex(Movable):
    """Where the detection memory of each sample lies: rows are samples, padded at the end.

    `vision` indexes merged vision features, the student's picture only, row by row; `vision_centers` are the (x, y)
    centres of those image tokens in the picture, in [0, 1]. `text` indexes the flattened hidden states, from the
    sample's first token up to, not including, the student's answer; `text_positions` counts them from 0.
    """

    vision: Int[Tensor, "samples vision_memory"]
    vision_mask: Bool[Tensor, "samples vision_memory"]
    vision_centers: Float[Tensor, "samples vision_memory 2"]
    text: Int[Tensor, "samples text_memory"]
    text_mask: Bool[Tensor, "samples text_memory"]
    text_positions: Int[Tensor, "samples text_memory"]

    @property
    def vision_sizes(self) -> Float[Tensor, "samples 2"]:
        """Width and height of an image token in its picture: twice the centre of the first, which is in a corner."""
        return 2 * self.vision_centers[:, 0]


@dataclass(frozen=True)
class Truth:
    """The true boxes of a batch, which a head may learn from in training, and their noise (`Encoded`); `most` is the
    largest number in a sample."""

    boxes_cxcywh: Float[Tensor, "objects 4"]
    noise: Float[Tensor, "objects 4"]
    sample_of_object: Int[Tensor, "objects"]
    most: int


@dataclass(frozen=True)
class Batch(Movable):
    """Some samples of a step, laid out in rows. Nothing downstream asks which collator laid them.

    `cu_seqlens` bounds the segments of the flattened rows: each sample is one, each run of padding another.
    `vision` holds all pictures, or with `PictureFormat.teachers_apart` the students', followed by `teachers`: in that
    order merged features are numbered, and `image_positions` are where they belong.
    `sample_of_token` is -1 for padding. The first of the four `position_ids` is the text position, which restarts
    at 0 for each sample. `supervised_positions` are the flattened positions whose hidden state predicts `labels`,
    which belong to the answer of `label_roles`; there is always at least one, of role NONE if need be, so that every
    rank runs the same modules. Objects lie in the order of their samples, of which the host knows `objects_per_sample`.
    `caption_ids` are padded with -100. Boxes and noise as in `Encoded`.
    """

    sample_ids: tuple[str, ...]
    input_ids: Int[Tensor, "rows row_tokens"]
    position_ids: Int[Tensor, "4 rows row_tokens"]
    sample_of_token: Int[Tensor, "rows row_tokens"]
    cu_seqlens: Int[Tensor, "_"]
    max_seqlen: int
    image_positions: Int[Tensor, "merged"]
    vision: VisionInputs
    teachers: tuple[TeacherPicture, ...]
    supervised_positions: Int[Tensor, "supervised"]
    labels: Int[Tensor, "supervised"]
    label_roles: Int[Tensor, "supervised"]
    memory: MemoryIndex
    boxes_cxcywh: Float[Tensor, "objects 4"]
    sample_of_object: Int[Tensor, "objects"]
    objects_per_sample: tuple[int, ...]
    caption_ids: Int[Tensor, "objects caption"]
    annotated: Bool[Tensor, "samples"]
    noise: Float[Tensor, "objects 4"]
    counts: Counts
    sizes: Sizes

    @property
    def truth(self) -> Truth:
        return Truth(self.boxes_cxcywh, self.noise, self.sample_of_object, max(self.objects_per_sample))


@dataclass(frozen=True)
class Denoised:
    """What the head makes of true boxes that it was given with noise, `groups` times each.

    Of the first of each two the noise was small, and the box is to be found again; of the second it was large, and that
    there is no object is to be seen. The boxes are those of the first.
    """

    boxes_cxcywh: Float[Tensor, "layers objects groups 4"]
    objectness_logits: Float[Tensor, "layers objects groups 2"]


@dataclass(frozen=True)
class Dense:
    """What the head makes of each image token of the student's picture by itself. `objects` says whose box it is to
    find, several tokens that of one object and most that of none, which is -1. `mask` is False for padding."""

    boxes_cxcywh: Float[Tensor, "samples tokens 4"]
    objectness_logits: Float[Tensor, "samples tokens"]
    objects: Int[Tensor, "samples tokens"]
    mask: Bool[Tensor, "samples tokens"]


@dataclass(frozen=True)
class Detections:
    """What the head says. The last of `layers` is the answer, the others are for auxiliary losses.

    `boxes_logits` and `boxes_cxcywh` are the boxes before and after the sigmoid.
    `caption_losses(samples, queries, caption_ids, most)` gives the cross entropy of each caption token, teacher-forced
    on the query of its object and 0 where padded; it needs the matching, which the loss makes. `most` is the largest
    number of objects of a sample.
    `describe(end_token, max_tokens)` decodes a caption for every query, greedily: token ids of shape (samples, queries,
    at most max_tokens), `end_token` after the end.
    `denoised`, `dense`: None outside of training, and for a head that does not learn so.
    """

    boxes_logits: Float[Tensor, "layers samples queries 4"]
    boxes_cxcywh: Float[Tensor, "layers samples queries 4"]
    objectness_logits: Float[Tensor, "layers samples queries"]
    caption_losses: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    describe: Callable[[int, int], Tensor]
    denoised: Denoised | None = None
    dense: Dense | None = None


@dataclass(frozen=True)
class Outputs:
    """What the model says of a batch: the cross entropy of each supervised token and, with a head, its detections."""

    token_losses: Float[Tensor, "supervised"]
    detections: Detections | None


Losses = dict[str, Float[Tensor, ""]]
"""Sums, never means, by the name under which they are logged (`bbox_giou` is logged as `loss/bbox_giou`)."""
