from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.conversation.patches import read_patches, resized_size, to_images
from bbu_train.errors import InputError
from bbu_train.types.samples import Picture, PictureFormat

FORMAT = PictureFormat(
    patch_size=14, merge_size=2, window_size=112, min_pixels=3136, max_pixels=37632, teachers_apart=False
)
PROCESSOR = Qwen2VLImageProcessorPil(min_pixels=FORMAT.min_pixels, max_pixels=FORMAT.max_pixels)
KEPT, ENLARGED, REDUCED = [(112, 84), (56, 168)], [(20, 30), (57, 40), (5, 150)], [(300, 211), (640, 480), (97, 800)]


def process(image):
    """Return (bytes of the first frame, bytes of the second, grid) from transformers' processor."""
    features = PROCESSOR(images=image, return_tensors="pt")
    mean, std = (
        torch.tensor(values).repeat_interleave(2 * 14 * 14) for values in (PROCESSOR.image_mean, PROCESSOR.image_std)
    )
    bytes_ = ((features["pixel_values"] * std + mean) * 255).unflatten(1, (3, 2, 14 * 14))
    assert (bytes_ - bytes_.round()).abs().max() < 1e-3
    first, second = bytes_.round().to(torch.uint8).unbind(2)
    return first.flatten(1), second.flatten(1), features["image_grid_thw"][0].tolist()


@pytest.mark.parametrize(("width", "height"), KEPT + ENLARGED + REDUCED)
def test_patches_are_the_bytes_of_transformers_processor(make_picture, width, height):
    picture = make_picture(f"noise {width} {height}", width, height)
    first, second, _ = process(Image.open(picture.path))
    patches = read_patches(picture, FORMAT)
    assert torch.equal(patches, first)
    assert torch.equal(patches, second)


@pytest.mark.parametrize(("width", "height"), KEPT + ENLARGED + REDUCED)
def test_the_resized_size_is_the_grid_of_transformers_processor(make_picture, width, height):
    picture = make_picture(f"noise {width} {height}", width, height)
    resized_width, resized_height = resized_size(picture, FORMAT)
    assert process(Image.open(picture.path))[2] == [1, resized_height // 14, resized_width // 14]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_read_upright(tmp_path, orientation):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.effect_noise((120, 70), 90).save(path, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    patches = read_patches(Picture(path, *upright.size, ()), FORMAT)
    assert torch.equal(patches, process(upright)[0])


def test_other_limits_give_another_size(make_picture):
    picture = make_picture("noise 640 480", 640, 480)
    assert resized_size(picture, replace(FORMAT, max_pixels=1_000_000)) == (644, 476)


def test_a_picture_that_changed_since_it_was_checked_is_named(make_picture):
    picture = make_picture("noise 112 84", 112, 84)
    with pytest.raises(InputError, match=r"noise 112 84\.png is 112 x 84 pixels but was 84 x 112"):
        read_patches(Picture(picture.path, 84, 112, ()), FORMAT)


def test_a_picture_that_can_no_longer_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png: No such file .*; its header could be read when the"):
        read_patches(Picture(tmp_path / "gone.png", 84, 112, ()), FORMAT)


@pytest.mark.parametrize("size", [(4, 801), (801, 4)])
def test_a_picture_too_narrow_for_the_model_is_named(tmp_path, size):
    with pytest.raises(InputError, match=rf"thin\.png is {size[0]} x {size[1]} pixels: .*200.*leave it out"):
        resized_size(Picture(tmp_path / "thin.png", *size, ()), FORMAT)


def test_a_patch_holds_channel_row_and_column_in_that_order(tmp_path):
    pixels = np.arange(56 * 56 * 3, dtype=np.uint32).astype(np.uint8).reshape(56, 56, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    patches = read_patches(Picture(tmp_path / "a.png", 56, 56, ()), FORMAT)
    corners = [(0, 0), (0, 14), (14, 0), (14, 14), (0, 28)]  # a merge block in reading order, then the next block
    for patch, (top, left) in zip(patches, corners, strict=False):
        square = pixels[top : top + 14, left : left + 14].transpose(2, 0, 1)
        assert patch.tolist() == square.flatten().tolist()


def test_pictures_come_back_from_their_patches_bit_for_bit(make_picture):
    pictures = [make_picture("noise", *size) for size in ((112, 84), (56, 140))]
    patches = [read_patches(picture, FORMAT) for picture in pictures]
    grid = torch.tensor([(1, 6, 8), (1, 10, 4)])
    for picture, image in zip(pictures, to_images(torch.cat(patches), grid, FORMAT), strict=True):
        assert image.tobytes() == Image.open(picture.path).tobytes()
