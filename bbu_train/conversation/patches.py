"""Cutting a picture into the patches of bytes that the vision tower reads, and back, without torchvision."""

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from bbu_train.conversation.pixels import read_pixels
from bbu_train.errors import InputError
from bbu_train.types.samples import Picture, PictureFormat


def resized_size(picture: Picture, picture_format: PictureFormat) -> tuple[int, int]:
    """Return (width, height) in pixels after Qwen2.5-VL's resize, without reading the file.

    Raises InputError for a picture whose longer side is more than 200 times the shorter: the model does not accept it.
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
    """Return the patches of the resized picture as raw bytes, each ordered (channel, row, column).

    Patches come in the order of transformers' image processor: merge blocks in reading order, and the `merge_size` x
    `merge_size` patches of each block in reading order. The processor also repeats a still picture as a second frame;
    here there is one frame, and the patch embedding accounts for the second.
    """
    width, height = resized_size(picture, picture_format)
    resized = read_pixels(picture, width, height)
    patch, merge = picture_format.patch_size, picture_format.merge_size
    blocks = height // patch // merge, width // patch // merge
    # A row of a patch is one element of this dtype: copying it is several times faster than copying bytes.
    row = np.dtype(f"V{patch}")
    patches = np.empty((*blocks, merge, merge, 3, patch), row)
    for channel, name in enumerate("RGB"):
        rows = np.frombuffer(resized.tobytes("raw", name), row).reshape(blocks[0], merge, patch, blocks[1], merge)
        patches[:, :, :, :, channel] = rows.transpose(0, 3, 1, 4, 2)
    return torch.from_numpy(patches.view(np.uint8).reshape(-1, 3 * patch * patch))


def to_images(
    patches: UInt8[Tensor, "patches 588"], grid_thw: Int[Tensor, "pictures 3"], picture_format: PictureFormat
) -> list[Image.Image]:
    """Return the pictures that `read_patches` cut into `patches`, one after the other: its inverse, bit for bit."""
    patch, merge = picture_format.patch_size, picture_format.merge_size
    images, start = [], 0
    for _, rows, columns in grid_thw.tolist():
        part = patches[start : start + rows * columns].numpy()
        start += rows * columns
        blocks = part.reshape(rows // merge, columns // merge, merge, merge, 3, patch, patch)
        pixels = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
        images.append(Image.fromarray(np.ascontiguousarray(pixels)))
    return images
