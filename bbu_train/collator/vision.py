"""The pictures of a batch as inputs of the vision tower."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from bbu_train.types.batch import Encoded, TeacherPicture, VisionInputs
from bbu_train.types.samples import PictureFormat


def lay_out_pictures(
    samples: Sequence[Encoded], starts: Sequence[int], picture_format: PictureFormat
) -> tuple[VisionInputs, tuple[TeacherPicture, ...], Int[Tensor, "merged"]]:
    """Return the vision tower's inputs, the teachers' pictures kept apart, and the image tokens' flattened positions.

    Without `PictureFormat.teachers_apart` the tower reads all pictures, and no picture is kept apart. With it the tower
    reads the students' pictures, and the positions are those of the students' image tokens, then the teachers'.
    """
    image_positions = [start + sample.image_positions for start, sample in zip(starts, samples, strict=True)]
    if not picture_format.teachers_apart:
        patches, grids = (torch.cat([getattr(s, name) for s in samples]) for name in ("patches", "grid_thw"))
        return _inputs(patches, grids, picture_format), (), torch.cat(image_positions)
    conversations = [
        _split_pictures(sample, positions, picture_format)
        for sample, positions in zip(samples, image_positions, strict=True)
    ]
    students = [pictures[-1] for pictures in conversations]
    teachers = [picture for pictures in conversations for picture in pictures[:-1]]
    student_patches, student_grids, _ = map(torch.cat, zip(*students, strict=True))
    apart = tuple(
        TeacherPicture(_key(patches, grid), _inputs(patches, grid, picture_format)) for patches, grid, _ in teachers
    )
    positions = torch.cat([positions for _, _, positions in (*students, *teachers)])
    return _inputs(student_patches, student_grids, picture_format), apart, positions


def _split_pictures(
    sample: Encoded, image_positions: Tensor, picture_format: PictureFormat
) -> list[tuple[Tensor, ...]]:
    """Return (patches, grid, positions of the image tokens) of each picture of a conversation."""
    num_patches = sample.grid_thw.prod(dim=1)
    num_merged = num_patches // picture_format.merge_size**2
    parts = sample.patches.split(num_patches.tolist()), sample.grid_thw.split(1)
    return list(zip(*parts, image_positions.split(num_merged.tolist()), strict=True))


def _key(patches: UInt8[Tensor, "patches 588"], grid_thw: Int[Tensor, "1 3"]) -> bytes:
    # Hash the tower's inputs, not the file's path: copies of a picture share a key, and a changed picture gets another.
    digest = hashlib.blake2b(patches.numpy(), digest_size=16)
    digest.update(grid_thw.numpy())
    return digest.digest()


def _inputs(
    patches: UInt8[Tensor, "patches 588"], grid_thw: Int[Tensor, "pictures 3"], picture_format: PictureFormat
) -> VisionInputs:
    window_index, cu_window_seqlens = get_vision_window_index(
        grid_thw, picture_format.merge_size, picture_format.window_size, picture_format.patch_size
    )
    cu_seqlens = get_vision_cu_seqlens(grid_thw)
    return VisionInputs(
        patches=patches,
        grid_thw=grid_thw,
        position_ids=get_vision_position_ids(grid_thw, picture_format.merge_size),
        window_index=window_index,
        cu_seqlens=cu_seqlens,
        cu_window_seqlens=cu_window_seqlens,
        max_seqlen=int(cu_seqlens.diff().max()),
        max_window_seqlen=int(cu_window_seqlens.diff().max()),
    )
