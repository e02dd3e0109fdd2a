"""Reading picture files: the upright size without decoding, and the upright pixels."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

JPEG_END = b"\xff\xd9"
JPEG_TAIL = 64  # bytes at the end of a file that are searched for the end marker: some cameras pad their files
PNG_SIGNATURE_SIZE = 8
PNG_CHECKSUM_SIZE = 4


class UnreadablePicture(ValueError):
    """A picture file is missing, truncated or not a picture. The message holds its path and says which."""


def read_header(path: Path) -> tuple[int, int]:
    """Return the width and height in pixels of `open_upright(path)`, without decoding if the format allows it.

    A JPEG with its end marker and a PNG that ends right after its pixels count as complete. Any other file is decoded
    to be certain. Raises UnreadablePicture.
    """
    with _open(path) as image:
        if _is_surely_complete(image):
            width, height = image.size
            # PngImageFile.getexif would decode the picture to search for an orientation behind the pixels.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
            return (height, width) if orientation in (5, 6, 7, 8) else (width, height)
    return open_upright(path).size


def open_upright(path: Path) -> Image.Image:
    """Return the decoded picture in RGB, turned as its EXIF orientation says.

    Transparent pixels become white, as in image viewers. 16-bit greys keep their high byte. Raises UnreadablePicture.
    """
    with _open(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")  # convert always copies


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
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


def _is_surely_complete(image: Image.Image) -> bool:
    """Whether the end of the file proves, without decoding, that nothing is missing. False means "unknown"."""
    has_end = {"JPEG": _has_jpeg_end, "MPO": _has_jpeg_end, "PNG": _ends_after_png_pixels}.get(image.format)
    if has_end is None:
        return False
    position = image.fp.tell()
    try:
        return has_end(image.fp)
    finally:
        image.fp.seek(position)


def _has_jpeg_end(file: IO[bytes]) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(size, JPEG_TAIL), os.SEEK_END)
    return JPEG_END in file.read()


def _ends_after_png_pixels(file: IO[bytes]) -> bool:
    """Whether the last chunks are IDAT and IEND: the file is complete, and no orientation comes after the pixels."""
    file.seek(PNG_SIGNATURE_SIZE)
    previous = b""
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return previous == b"IDAT"
        previous = kind
        file.seek(length + PNG_CHECKSUM_SIZE, os.SEEK_CUR)
    return False
