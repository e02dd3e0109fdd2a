"""Encoded conversations, and the batches that collators lay out from them."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from bbu_train.ops.flops import Sizes

M = TypeVar("M", bound="Movable")


@dataclass(frozen=True)
class Encoded:
    """One conversation as tensors.

    sample_id        the sample's name in messages, such as "train.jsonl:12"
    input_ids        token ids, with one image token for each 2 x 2 patches
    roles            for each token a `Role`: whose answer it belongs to, NONE for all other tokens
    position_ids     Qwen2.5-VL's 3-D positions (time, height, width), from 0
    image_positions  indices of the image tokens in `input_ids`
    patches          raw bytes of 14 x 14 pixel patches, each (channel, row, column), in the order in which the vision
                     tower merges them; the student's picture is the last
    grid_thw         size of each picture in patches: (1, rows, columns)
    memory_end       index of the first token of the student's answer; the head may read only tokens before it
    boxes_cxcywh     the student's objects, divided by the width and height of its picture
    captions         token ids of each object's description, ending with `<|im_end|>`
    annotated        False if nobody annotated the student's picture: it then has no detection loss
    noise            four numbers in [0, 1) for each object, drawn from (seed, epoch, sample); a head takes all of its
                     training noise from them
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
        """Return the same conversation without any loss: a filler for a rank or micro-batch that has no sample."""
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
    """The divisors of a step's loss sums, themselves summed over all micro-batches and ranks of the step.

    teacher_tokens  supervised tokens of teachers' answers
    student_tokens  supervised tokens of students' answers
    objects         objects in students' pictures
    samples         annotated students' pictures, including those annotated as empty
    """

    teacher_tokens: int
    student_tokens: int
    objects: int
    samples: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Movable:
    """A frozen dataclass of tensors and other Movables that can move to a device or into pinned memory."""

    def _map(self: M, function: Callable[[Tensor], Tensor]) -> M:
        changed = {
            f.name: function(value) if isinstance(value, Tensor) else value._map(function)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | Movable)
        }
        return replace(self, **changed)

    def to(self: M, device: torch.device | str) -> M:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: M) -> M:
        return self._map(Tensor.pin_memory)


@dataclass(frozen=True)
class VisionInputs(Movable):
    """The inputs of the vision tower, including its index arithmetic, so that the device never waits for the host.

    The index fields are those that transformers' `vision_utils` computes.

    patches            raw bytes of 14 x 14 pixel patches, as in `Encoded`
    grid_thw           size of each picture in patches: (1, rows, columns)
    position_ids       (row, column) of each patch
    window_index       permutation of the image tokens that makes each attention window contiguous
    cu_seqlens         bounds of the pictures in the sequence of patches, from 0
    cu_window_seqlens  bounds of the windows in the permuted sequence of patches, from 0
    max_seqlen         patches of the largest picture
    max_window_seqlen  patches of the largest window
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
    """One teacher's picture, kept apart so that its features can be cached.

    It is not Movable: it stays on the host unless the model has no cached features for its key.

    key     equal for two pictures with the same bytes on the same grid
    vision  the inputs of the vision tower for this picture alone
    """

    key: bytes
    vision: VisionInputs


@dataclass(frozen=True)
class MemoryIndex(Movable):
    """The location of each sample's detection memory. Rows are samples, padded at the end.

    vision          indices of the student's image tokens among the merged vision features
    vision_mask     False for padding
    vision_centers  (x, y) centre of each of these image tokens in the picture, in [0, 1]
    text            indices into the flattened hidden states, from the sample's first token up to, but not including,
                    the student's answer
    text_mask       False for padding
    text_positions  position of each of these tokens in its sample, from 0
    """

    vision: Int[Tensor, "samples vision"]
    vision_mask: Bool[Tensor, "samples vision"]
    vision_centers: Float[Tensor, "samples vision 2"]
    text: Int[Tensor, "samples text"]
    text_mask: Bool[Tensor, "samples text"]
    text_positions: Int[Tensor, "samples text"]

    @property
    def vision_sizes(self) -> Float[Tensor, "samples 2"]:
        """(width, height) of an image token as shares of its picture: twice the centre of the first, top left token."""
        return 2 * self.vision_centers[:, 0]


@dataclass(frozen=True)
class GroundTruth:
    """The true boxes of a batch, for heads that are trained with them.

    boxes_cxcywh      as in `Encoded`
    noise             as in `Encoded`
    sample_of_object  index of each object's sample in the batch, ascending
    max_objects       largest number of objects in one sample
    """

    boxes_cxcywh: Float[Tensor, "objects 4"]
    noise: Float[Tensor, "objects 4"]
    sample_of_object: Int[Tensor, "objects"]
    max_objects: int


@dataclass(frozen=True)
class Batch(Movable):
    """Some or all samples of a step, laid out in rows. No code after the collator depends on which collator made it.

    sample_ids            names of the samples in messages
    input_ids             token ids; 0 for padding
    position_ids          text positions, which restart at 0 for each sample, then the 3-D positions; 0 for padding
    sample_of_token       index of each token's sample in the batch; -1 for padding
    cu_seqlens            bounds of the segments of the flattened rows, from 0: each sample is a segment, and so is each
                          run of padding
    max_seqlen            tokens of the longest segment
    image_positions       position in the flattened rows of each merged vision feature
    vision                all pictures, or the students' alone if `PictureFormat.teachers_apart`
    teachers              the teachers' pictures if `PictureFormat.teachers_apart`, else empty; their merged features
                          are numbered after those of `vision`
    supervised_positions  positions in the flattened rows whose hidden state predicts `labels`; never empty, so that
                          every rank runs the same modules: a batch without answers has one of role NONE
    labels                the token ids to predict
    label_roles           for each label a `Role`: whose answer it belongs to
    memory                where the detection memory of each sample lies
    boxes_cxcywh          objects in the order of their samples, divided by width and height of their pictures
    sample_of_object      index of each object's sample in the batch
    objects_per_sample    number of objects of each sample, on the host
    caption_ids           token ids of each object's description, ending with `<|im_end|>`; -100 for padding
    annotated             False for samples without a detection loss
    noise                 four numbers in [0, 1) for each object, as in `Encoded`
    counts                divisors of the loss sums; the training loop adds them up over the step
    sizes                 the amount of arithmetic that the batch needs
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
