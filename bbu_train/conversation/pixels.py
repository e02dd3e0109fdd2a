"""Reading the pixels of a picture, or of a view of it, in the resized size."""

from PIL import Image, ImageEnhance

from bbu_train.errors import InputError
from bbu_train.images.files import UnreadablePicture, open_upright
from bbu_train.types.samples import Picture, View


def read_pixels(picture: Picture, width: int, height: int) -> Image.Image:
    """Return `picture`, or its view, resized to `width` x `height` pixels of RGB.

    Raises InputError, naming the file, if its pixels are damaged or it has changed since the data was checked.
    """
    try:
        image = open_upright(picture.path)
    except UnreadablePicture as error:
        raise InputError(f"{error}; its header could be read when the data was checked.") from error
    expected = picture.view or picture
    if image.size != (expected.width, expected.height):
        raise InputError(
            f"{picture.path} is {image.size[0]} x {image.size[1]} pixels but was {expected.width} x {expected.height} "
            "when the data was checked: the file changed during the run."
        )
    part = picture.view and picture.view.part_xyxy
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=part)
    return _mirror_and_recolor(resized, picture.view) if picture.view else resized


def _mirror_and_recolor(image: Image.Image, view: View) -> Image.Image:
    if view.left_right:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.top_bottom:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    factors = view.brightness, view.contrast, view.saturation
    enhancers = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    for enhancer, factor in zip(enhancers, factors, strict=True):
        if factor != 1:
            image = enhancer(image).enhance(factor)
    return image
