"""Picture files: their upright size without decoding them, and their upright pixels."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

JPEG_END = b"\xff\xd9"
JPEG_TAIL = 64  # bytes in which to look for the end marker: some cameras pad their files
PNG_SIGNATURE_SIZE = 8
PNG_CHECKSUM_SIZE = 4


class UnreadablePicture(ValueError):
    """A picture file is missing, no picture, or truncated; the message holds its path and says which."""


def read_header(path: Path) -> tuple[int, int]:
    """Width and height in pixels of what `open_upright` gives, without decoding where the format allows it.

    A JPEG with its end marker and a PNG that ends right after its pixels are taken as whole; anything else is
    decoded to be certain. Raises UnreadablePicture.
    """
    with _opened(path) as image:
        if _is_surely_whole(image):
            width, height = image.size
            # PngImageFile's own getexif would decode the picture, in search of an orientation behind the pixels.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
            return (height, width) if orientation in (5, 6, 7, 8) else (width, height)
    return open_upright(path).size


def open_upright(path: Path) -> Image.Image:
    """The decoded picture in RGB, turned as its EXIF orientation says.

    Transparent pixels become white, as viewers show them; of 16-bit greys the high byte is kept.
    Raises UnreadablePicture.
    """
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError:
        raise UnreadablePicture(f"{path}: not a picture, or cut off within its header") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UnreadablePicture(f"{path}: {error.strerror}") from None
        raise UnreadablePicture(f"{path}: truncated or damaged picture ({error})") from None


def _is_surely_whole(image: Image.Image) -> bool:
    """Whether the file's end proves, without decoding, that nothing is missing; False means only that it may be."""
    check = {"JPEG": _has_jpeg_end, "MPO": _has_jpeg_end, "PNG": _ends_after_png_pixels}.get(image.format)
    if check is None:
        return False
    position = image.fp.tell()
    try:
        return check(image.fp)
    finally:
        image.fp.seek(position)


def _has_jpeg_end(file) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(size, JPEG_TAIL), os.SEEK_END)
    return JPEG_END in file.read()


def _ends_after_png_pixels(file) -> bool:
    """Whether the last chunks are IDAT and IEND: whole, and without an orientation that comes after the pixels."""
    file.seek(PNG_SIGNATURE_SIZE)
    previous = b""
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return previous == b"IDAT"
        previous = kind
        file.seek(length + PNG_CHECKSUM_SIZE, os.SEEK_CUR)
    return False
