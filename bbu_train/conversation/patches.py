"""From a picture file to the bytes that the vision tower reads, without torchvision."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from bbu_train.conversation.pixels import read_pixels
from bbu_train.errors import InputError
from bbu_train.types.samples import Picture, PictureFormat


def resized_size(picture: Picture, picture_format: PictureFormat) -> tuple[int, int]:
    """(width, height) in pixels after the resize that Qwen2.5-VL prescribes; needs no pixel.

    Raises InputError for a picture that is more than 200 times as long as wide, which the model does not take.
    """
    try:
        height, width = smart_resize(
            picture.height,
            picture.width,
            factor=picture_format.patch_size * picture_format.merge_size,
            min_pixels=picture_format.min_pixels,
            max_pixels=picture_format.max_pixels,
        )
    except ValueError as error:
        raise InputError(
            f"{picture.path} is {picture.width} x {picture.height} pixels: {error}. Crop it or leave it out."
        ) from error
    return width, height


def read_patches(picture: Picture, picture_format: PictureFormat) -> UInt8[Tensor, "patches 588"]:
    """The resized picture's patches as raw bytes, each (channel, row, column).

    They lie in the order of transformers' image processor: merge blocks in reading order, and within a block its
    `merge_size` x `merge_size` patches in reading order. A still picture has one frame, so the repetition in time
    that the processor makes is left to the patch embedding.
    """
    width, height = resized_size(picture, picture_format)
    resized = read_pixels(picture, width, height)
    patch, merge = picture_format.patch_size, picture_format.merge_size
    blocks = height // patch // merge, width // patch // merge
    # The row of a patch is copied as one element: several times faster than byte by byte.
    row = np.dtype(f"V{patch}")
    cut = np.empty((*blocks, merge, merge, 3, patch), row)
    for channel, name in enumerate("RGB"):
        rows = np.frombuffer(resized.tobytes("raw", name), row).reshape(blocks[0], merge, patch, blocks[1], merge)
        cut[:, :, :, :, channel] = rows.transpose(0, 3, 1, 4, 2)
    return torch.from_numpy(cut.view(np.uint8).reshape(-1, 3 * patch * patch))
