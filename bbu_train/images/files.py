"""Picture files: their names, the upright size without decoding, and the upright pixels."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from unicodedata import normalize

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from bbu_train.types.files import Times, times_of

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")  # in lower case; any case is accepted
TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # editors write more than the 1 MB that Pillow allows
JPEG_END = b"\xff\xd9"
JPEG_TAIL = 64  # bytes at the end of a file that are searched for the end marker: some cameras pad their files
PNG_SIGNATURE_SIZE = 8
PNG_CHECKSUM_SIZE = 4


class SpellingOnDisk:
    """A function from a path to the path as it is on disk, where names may be in another Unicode form.

    macOS and some archives store "e" and an accent (NFD) where a text holds one letter (NFC). An existing path is
    returned unchanged. If no spelling of it exists, only its existing folders are respelled. Among several spellings,
    the first by code point is taken. Each folder is listed once; `listed` holds the Times that it had before that.
    """

    def __init__(self) -> None:
        self.listed: dict[Path, Times] = {}
        self._names: dict[Path, dict[str, str]] = {}

    def __call__(self, path: Path) -> Path:
        missing, folder = [], path
        while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110 (Path.exists raises for long names)
            missing.append(folder.name)
            folder = folder.parent
        while missing and (spelling := self._spellings_in(folder).get(normalize("NFC", missing[-1]))) is not None:
            folder = folder / spelling
            missing.pop()
        return folder.joinpath(*reversed(missing))

    def _spellings_in(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            names = sorted(self.names_in(folder), reverse=True)
            self._names[folder] = {normalize("NFC", name): name for name in names}
        return self._names[folder]

    def names_in(self, folder: Path) -> list[str]:
        """Return the names in a folder, which goes to `listed`; none if it cannot be read."""
        self.listed.setdefault(folder, times_of(folder))
        try:
            return os.listdir(folder)  # noqa: PTH208 (names alone, a million of them)
        except (OSError, ValueError):  # ValueError: a name that no folder can have
            return []


class UnreadablePicture(ValueError):
    """A picture file is missing, damaged, no picture, or has greys of 32 bits. The message says where, and which."""


def read_header(path: Path) -> tuple[int, int]:
    """Return the width and height in pixels of `open_upright(path)`, without decoding if the format allows it.

    A JPEG with its end marker and a PNG that ends right after its pixels count as complete. Any other file is decoded
    to be certain. Raises UnreadablePicture.
    """
    with _open(path) as image:
        if _is_surely_complete(image):
            width, height = image.size
            return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)
    return open_upright(path).size


def open_upright(path: Path) -> Image.Image:
    """Return the decoded picture in RGB, turned as its EXIF orientation says.

    Transparent pixels become white, as in image viewers. 16-bit greys keep their high byte. Raises UnreadablePicture.
    """
    with _open(path) as image:
        return _to_upright(image)


def to_upright(image: Image.Image, name: str) -> Image.Image:
    """Do with an image in memory what `open_upright` does with a file; `name` stands for it in messages.

    The orientation is that of its EXIF, if it still has one. Raises UnreadablePicture.
    """
    with _explained(name):
        if 0 in image.size:
            raise UnreadablePicture(f"{name}: {image.width} x {image.height} pixels; expected at least 1 x 1")
        if _is_closed(image):
            raise UnreadablePicture(f"{name}: its file was closed before its pixels were read. Call load() before that")
        _check_greys(image, name)
        return _to_upright(image)


def _is_closed(image: Image.Image) -> bool:
    """Whether the file of an image was closed before its pixels were read."""
    try:
        image.load()
    except Exception:  # Pillow raises nearly anything
        file = getattr(image, "fp", None)
        return file is None or file.closed
    return False


def _to_upright(image: Image.Image) -> Image.Image:
    image.load()  # also finds an orientation that comes after the pixels of a PNG
    transpose = TRANSPOSE_OF_ORIENTATION.get(_orientation(image))
    return _to_rgb(image if transpose is None else image.transpose(transpose))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert always copies


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    # Without a file name Pillow maps no file into memory, where it takes the sides of a turned TIFF the wrong way.
    with _explained(path), path.open("rb") as file, Image.open(file) as image:
        _check_greys(image, path)
        yield image


def _check_greys(image: Image.Image, path: Path | str) -> None:
    if image.mode == "F" or (image.mode == "I" and image.format in ("TIFF", None)):
        raise UnreadablePicture(f"{path}: 32 bits for each grey; expected 8 or 16")


@contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """Turn what Pillow raises for the picture at `path` into UnreadablePicture."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise UnreadablePicture(f"{path}: {error}") from None
    except UnreadablePicture:
        raise
    except UnidentifiedImageError:
        raise UnreadablePicture(f"{path}: not a picture, or cut off within its header") from None
    except Exception as error:  # Pillow raises nearly anything for damaged files
        if isinstance(error, OSError) and error.strerror:
            raise UnreadablePicture(f"{path}: {error.strerror}") from None
        raise UnreadablePicture(f"{path}: truncated or damaged picture ({error})") from None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1, upright, if there is none or EXIF is broken."""
    try:
        # PngImageFile.getexif would decode the picture to search for an orientation behind the pixels.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        return orientation if orientation in TRANSPOSE_OF_ORIENTATION else 1
    except Exception:  # Pillow raises nearly anything for broken EXIF, and the pixels do not need it
        return 1


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
