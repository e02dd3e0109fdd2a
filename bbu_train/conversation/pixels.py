"""From a picture file to the resized pixels of what is seen of it."""

from PIL import Image, ImageEnhance

from bbu_train.errors import InputError
from bbu_train.images.files import UnreadablePicture, open_upright
from bbu_train.types.samples import Picture, View


def read_pixels(picture: Picture, width: int, height: int) -> Image.Image:
    """`picture`, or its view, in `width` x `height` pixels of RGB. Raises InputError for a file that changed."""
    try:
        image = open_upright(picture.path)
    except UnreadablePicture as error:
        raise InputError(f"{error}; it could be read when the data was checked.") from error
    known = picture.view or picture
    if image.size != (known.width, known.height):
        raise InputError(
            f"{picture.path} is {image.size[0]} x {image.size[1]} pixels but was {known.width} x {known.height} "
            "when the data was checked: the file changed while the run was going on."
        )
    part = picture.view and picture.view.part_xyxy
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=part)
    return _seen(resized, picture.view) if picture.view else resized


def _seen(image: Image.Image, view: View) -> Image.Image:
    """The resized part turned over and recoloured."""
    if view.left_right:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.top_bottom:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    factors = view.brightness, view.contrast, view.saturation
    changes = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    for change, factor in zip(changes, factors, strict=True):
        if factor != 1:
            image = change(image).enhance(factor)
    return image
