"""What a person looks at: true and predicted boxes on a picture, many pictures on one sheet, the losses of a run."""

import hashlib
import math
from collections.abc import Collection
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from bbu_train.images.files import open_upright
from bbu_train.images.fonts import font
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of

LEGIBLE = 800  # pixels of the longer side at which lines and letters are planned
LINE, LETTERS = 2, 15  # pixels at that size
SMALLEST = 11  # pixels of letters that can still be read
MAX_LENGTH = 40  # characters of a label; a model in its first steps writes more, and anything
MAX_CLASSES = 12  # of a legend
DARK, WHITE = (24, 27, 33), (255, 255, 255)
COLORS = [
    (255, 105, 97),
    (80, 200, 255),
    (120, 230, 120),
    (255, 200, 60),
    (200, 150, 255),
    (255, 150, 60),
    (70, 225, 200),
    (255, 130, 205),
    (190, 215, 70),
    (140, 170, 255),
]


def overlay(
    picture: Picture, prediction: Prediction, score_threshold: float, classes: Collection[str] = ()
) -> Image.Image:
    """The upright picture with true boxes (white, dashed) and the predicted ones from `score_threshold` on (solid).

    The colour of a prediction is that of its class, the same in most pictures and always different from the other
    classes of this one. `classes` choose theirs first, and so have the same in all pictures that are drawn with them.
    Small pictures are enlarged by a whole number. A legend lies below the picture.
    """
    image = open_upright(picture.path)
    factor = max(1, round(LEGIBLE / max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    unit = max(image.size) / LEGIBLE
    truths = [(tuple(factor * side for side in each.box_xyxy), each.description) for each in picture.objects or ()]
    found = sorted(
        (float(value), tuple((box * factor).tolist()), text)
        for box, value, text in zip(prediction.boxes_xyxy, prediction.scores, prediction.descriptions, strict=True)
        if value >= score_threshold
    )
    shown = {class_of(text) for *_, text in truths + found}
    colors = {name: color for name, color in _colors(classes, shown).items() if name in shown}
    draw = ImageDraw.Draw(image)
    for box, _ in truths:
        _dashed(draw, box, unit)
    for _, box, text in found:
        _solid(draw, box, colors[class_of(text)], unit)
    labels = [(box, f"{_short(text)} {value:.2f}", colors[class_of(text)]) for value, box, text in reversed(found)]
    _draw_labels(draw, labels + [(box, _short(text), DARK) for box, text in truths], unit)
    num_true = None if picture.objects is None else len(truths)
    return _with_legend(image, num_true, len(found), score_threshold, colors, unit)


def _colors(first: Collection[str], others: Collection[str]) -> dict[str, tuple[int, int, int]]:
    """Each class begins at the colour that its name hashes to and takes the next one that is free."""
    chosen: dict[str, int] = {}
    for name in [*sorted(first), *sorted(set(others) - set(first))]:
        index = hashlib.blake2b(name.encode()).digest()[0] % len(COLORS)
        while index in chosen.values() and len(chosen) < len(COLORS):
            index = (index + 1) % len(COLORS)
        chosen[name] = index
    return {name: COLORS[index] for name, index in chosen.items()}


def _solid(draw: ImageDraw.ImageDraw, box: tuple, color: tuple, unit: float) -> None:
    """A box with a thin dark rim, so that it shows on any ground. A box that is inside out is put right."""
    x1, y1, x2, y2 = min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])
    width, rim = max(2, round(LINE * 1.5 * unit)), max(1, round(unit))
    draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline=DARK, width=width + 2 * rim)
    draw.rectangle((x1, y1, x2, y2), outline=color, width=width)


def _dashed(draw: ImageDraw.ImageDraw, box: tuple, unit: float) -> None:
    """White dashes on a dark line."""
    x1, y1, x2, y2 = box
    width, dash = max(1, round(LINE * unit)), 8 * unit
    draw.rectangle((x1, y1, x2, y2), outline=DARK, width=width)
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], dtype=float)
    for start, end in pairwise(corners):
        length = float(np.abs(end - start).sum())
        for at in np.arange(0, length, 2 * dash):
            piece = [start + (end - start) * where / length for where in (at, min(at + dash, length))]
            draw.line([tuple(point) for point in piece], fill=WHITE, width=width)


def _draw_labels(draw: ImageDraw.ImageDraw, labels: list[tuple[tuple, str, tuple]], unit: float) -> None:
    """Each label at its box, where it covers no label before it. One that finds no place is left out.

    The more labels, the smaller they are, to 0.6 of the planned size.
    """
    unit *= min(1, max(0.6, math.sqrt(20 / max(1, len(labels)))))
    size, pad = max(SMALLEST, round(LETTERS * unit)), max(1, round(2 * unit))
    taken: list[tuple] = []
    for (x1, y1, x2, y2), text, color in labels:
        letters = font(size, text)
        width, height = draw.textlength(text, font=letters) + 2 * pad, size * 1.2 + 2 * pad
        corners = [(x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, x2 - width)]
        places = (_place(corner, width, height, draw.im.size) for corner in corners)
        place = next((each for each in places if not any(_overlap(each, other) for other in taken)), None)
        if place is None:
            continue
        taken.append(place)
        draw.rectangle(place, fill=color)
        draw.text((place[0] + pad, (place[1] + place[3]) / 2), text, font=letters, fill=_ink(color), anchor="lm")


def _short(text: str) -> str:
    """`text` on one line that is not too long."""
    line = " ".join(text.split()) or "?"
    return line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 3] + "..."


def _place(corner: tuple, width: float, height: float, size: tuple[int, int]) -> tuple:
    """The rectangle of a label, moved into the picture."""
    x = max(0, min(corner[0], size[0] - width))
    y = max(0, min(corner[1], size[1] - height))
    return x, y, x + width, y + height


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink(ground: tuple[int, int, int]) -> tuple[int, int, int]:
    return DARK if 0.3 * ground[0] + 0.6 * ground[1] + 0.1 * ground[2] > 110 else WHITE


def _with_legend(image: Image.Image, num_true: int | None, num_found: int, threshold: float, colors: dict, unit: float):
    """The picture on a strip that explains it, as many lines as the words need."""
    size, gap = max(SMALLEST, round(LETTERS * unit)), round(10 * unit)
    entries = [] if num_true is None else [(None, f"true: {num_true}")]
    entries.append(
        (WHITE, f"found, score {threshold:.2f} or more: {num_found}" if threshold else f"found: {num_found}")
    )
    entries += [(color, _short(name)) for name, color in list(colors.items())[:MAX_CLASSES]]
    if len(colors) > MAX_CLASSES:
        entries.append((DARK, f"and {len(colors) - MAX_CLASSES} classes more"))
    x, y, placed = gap, image.height + gap, []
    for color, text in entries:
        width = 2.2 * size + font(size, text).getlength(text)
        if x > gap and x + width > image.width:
            x, y = gap, y + round(1.6 * size)
        placed.append((x, y, color, text))
        x += width + 2 * gap
    sheet = Image.new("RGB", (image.width, y + size + gap), DARK)
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    for x, y, color, text in placed:
        sign = (x, y, x + 1.6 * size, y + size)
        if color is None:
            _dashed(draw, sign, unit)
        else:
            draw.rectangle(sign, outline=color, width=max(2, round(LINE * 1.5 * unit)))
        draw.text((x + 2.2 * size, y + size / 2), text, font=font(size, text), fill=WHITE, anchor="lm")
    return sheet
