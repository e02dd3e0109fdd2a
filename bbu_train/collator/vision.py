"""The pictures of a batch, as the vision tower takes them."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from bbu_train.types.batch import Encoded, TeacherPicture, VisionInputs
from bbu_train.types.samples import PictureFormat


def lay_pictures(
    samples: Sequence[Encoded], starts: Sequence[int], picture_format: PictureFormat
) -> tuple[VisionInputs, tuple[TeacherPicture, ...], Int[Tensor, "merged"]]:
    """What the tower reads at once, the teachers' pictures that come by themselves, and the flattened positions of the
    image tokens of both. Without `teachers_apart` the tower reads all pictures at once."""
    placed = [start + sample.image_positions for start, sample in zip(starts, samples, strict=True)]
    if not picture_format.teachers_apart:
        patches = torch.cat([sample.patches for sample in samples])
        return _inputs(patches, torch.cat([s.grid_thw for s in samples]), picture_format), (), torch.cat(placed)
    conversations = [_pictures(sample, at, picture_format) for sample, at in zip(samples, placed, strict=True)]
    students = [pictures[-1] for pictures in conversations]
    teachers = [picture for pictures in conversations for picture in pictures[:-1]]
    patches, grids, _ = map(torch.cat, zip(*students, strict=True))
    apart = tuple(
        TeacherPicture(_key(its_patches, grid), _inputs(its_patches, grid, picture_format))
        for its_patches, grid, _ in teachers
    )
    positions = torch.cat([at for _, _, at in (*students, *teachers)])
    return _inputs(patches, grids, picture_format), apart, positions


def _pictures(sample: Encoded, image_positions: Tensor, picture_format: PictureFormat) -> list[tuple[Tensor, ...]]:
    """(patches, grid, positions of its image tokens) of each picture of a conversation."""
    num_patches = sample.grid_thw.prod(dim=1)
    num_merged = num_patches // picture_format.merge_size**2
    parts = sample.patches.split(num_patches.tolist()), sample.grid_thw.split(1)
    return list(zip(*parts, image_positions.split(num_merged.tolist()), strict=True))


def _key(patches: UInt8[Tensor, "patches 588"], grid_thw: Int[Tensor, "1 3"]) -> bytes:
    # Of what the tower reads and not of the file's path: copies share it, and a picture that changed does not.
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
