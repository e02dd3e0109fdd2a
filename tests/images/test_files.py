import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from bbu_train.images.files import UnreadablePicture, open_upright, read_header

NOISE = Image.effect_noise((40, 30), 90)


def exif_of(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def with_trailing_exif(png, orientation):
    """The bytes of a PNG whose orientation comes after its pixels."""
    data = b"eXIf" + exif_of(orientation).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return png[:-12] + chunk + png[-12:]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_a_header_gives_the_size_in_every_common_format(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    NOISE.save(path)
    assert read_header(path) == (40, 30)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_header_and_pixels_agree_on_the_upright_size(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    NOISE.save(path, exif=exif_of(orientation))
    assert read_header(path) == open_upright(path).size == ((40, 30) if orientation < 5 else (30, 40))


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path):
    path = tmp_path / "a.png"
    NOISE.save(path)
    path.write_bytes(with_trailing_exif(path.read_bytes(), 6))
    assert read_header(path) == open_upright(path).size == (30, 40)


def test_header_and_pixels_agree_whatever_is_broken_in_exif(tmp_path):
    exif = exif_of(6)
    exif.update({ExifTags.Base.XResolution: 72, ExifTags.Base.Make: "maker", ExifTags.Base.ResolutionUnit: 2})
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:01:01 00:00:00"
    whole = exif.tobytes()
    random = np.random.default_rng(0)
    for number in range(90):
        broken = np.frombuffer(whole, dtype=np.uint8).copy()
        broken[random.integers(6, len(broken), random.integers(1, 9))] = random.integers(0, 256)
        path = tmp_path / f"{number}.{('jpg', 'png', 'webp')[number % 3]}"
        NOISE.save(path, exif=broken.tobytes()[: random.choice([len(whole), random.integers(len(whole))])])
        with warnings.catch_warnings(action="ignore"):  # Pillow's "Corrupt EXIF data"
            assert read_header(path) == open_upright(path).size


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("tag", [ExifTags.Base.XResolution, ExifTags.Base.ResolutionUnit, ExifTags.IFD.Exif, 0xABCD])
def test_values_of_a_wrong_type_in_exif_do_not_matter_to_the_orientation(tmp_path, suffix, tag):
    entries = [(ExifTags.Base.Orientation, 3, 1, struct.pack("<HH", 6, 0)), (tag, 2, 4, b"six\0")]  # 2: text, 3: uint16
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(struct.pack("<HHI4s", *each) for each in entries)
    path = tmp_path / f"a.{suffix}"
    NOISE.save(path, exif=exif + bytes(4))
    assert read_header(path) == open_upright(path).size == (30, 40)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_does_it(tmp_path, suffix, orientation):
    NOISE.save(tmp_path / f"a.{suffix}", exif=exif_of(orientation))
    NOISE.save(tmp_path / "reference.png", exif=exif_of(orientation))
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "reference.png")).convert("RGB")
    assert open_upright(tmp_path / f"a.{suffix}").tobytes() == expected.tobytes()


@pytest.mark.parametrize("read", [read_header, open_upright])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(UnreadablePicture, match=r"a\.jpg: No such file"):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0"])
@pytest.mark.parametrize("read", [read_header, open_upright])
def test_a_file_that_is_not_a_picture_is_named(tmp_path, read, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadablePicture, match=r"a\.jpg: not a picture"):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
@pytest.mark.parametrize("read", [read_header, open_upright])
def test_a_truncated_picture_is_named(tmp_path, read, suffix):
    path = tmp_path / f"a.{suffix}"
    NOISE.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadablePicture, match=rf"a\.{suffix}: (truncated|not a picture)"):
        read(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_bytes_after_the_end_of_a_picture_are_ignored(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    NOISE.save(path)
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert read_header(path) == (40, 30)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_complete_picture_is_not_decoded_for_its_header(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    NOISE.save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : -20] = bytes(len(data) - 20 - len(data) // 2)  # damage that only decoding can find
    path.write_bytes(data)
    assert read_header(path) == (40, 30)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    Image.new(mode, (4, 3)).save(tmp_path / "a.png")
    picture = open_upright(tmp_path / "a.png")
    assert (picture.mode, picture.size) == ("RGB", (4, 3))


def test_a_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    Image.new("I;16", (1, 1), 128 * 256).save(tmp_path / "a.png")
    assert open_upright(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (1, 1), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba.png", "palette.png"):
        assert open_upright(tmp_path / name).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert open_upright(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "value"), [("I", 200), ("F", 0.5)])
def test_a_grey_of_32_bits_is_refused_because_nobody_knows_its_white(tmp_path, mode, value):
    Image.new(mode, (4, 3), value).save(tmp_path / "a.tif")
    for read in (read_header, open_upright):
        with pytest.raises(UnreadablePicture, match=r"a\.tif: 32 bits for each grey; expected 8 or 16"):
            read(tmp_path / "a.tif")


def test_a_long_text_in_a_png_does_not_matter(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("history", "edited " * 1_000_000, zip=True)
    NOISE.save(tmp_path / "a.png", pnginfo=info)
    assert read_header(tmp_path / "a.png") == open_upright(tmp_path / "a.png").size == (40, 30)


def test_a_picture_of_too_many_pixels_is_named_with_its_limit(tmp_path, monkeypatch):
    NOISE.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadablePicture, match=r"a\.png: Image size \(1200 pixels\) exceeds limit of 200 pixels"):
        read_header(tmp_path / "a.png")
