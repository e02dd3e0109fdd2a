"""Sheets: several images side by side, and an image under its title."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from bbu_train.images.fonts import font
from bbu_train.images.overlay import DARK, LEGIBLE, LETTERS, SMALLEST, WHITE


def add_title(image: Image.Image, title: str) -> Image.Image:
    """Return `image` below a line of large letters."""
    size = max(SMALLEST, round(1.4 * LETTERS * max(image.size) / LEGIBLE))
    sheet = Image.new("RGB", (image.width, image.height + 2 * size), WHITE)
    sheet.paste(image, (0, 2 * size))
    ImageDraw.Draw(sheet).text((size // 2, size), title, font=font(size, title), fill=DARK, anchor="lm")
    return sheet


def make_sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return the images in rows of `columns`, each centred in a cell as large as the largest image."""
    gap = 12
    width, height = (max(sizes) + gap for sizes in zip(*(image.size for image in images), strict=True))
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * width + gap, math.ceil(len(images) / columns) * height + gap), WHITE)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = gap + column * width, gap + row * height
        sheet.paste(image, (left + (width - gap - image.width) // 2, top + (height - gap - image.height) // 2))
    return sheet
