"""Encoded conversations, and the batches that are laid out from them."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from bbu_train.ops.flops import Sizes


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
class GroundTruth:
    """The true boxes of a batch, which a head may learn from in training, and their noise (`Encoded`); `max_objects` is the
    largest number in a sample."""

    boxes_cxcywh: Float[Tensor, "objects 4"]
    noise: Float[Tensor, "objects 4"]
    sample_of_object: Int[Tensor, "objects"]
    max_objects: int


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
    def ground_truth(self) -> GroundTruth:
        return GroundTruth(self.boxes_cxcywh, self.noise, self.sample_of_object, max(self.objects_per_sample))
