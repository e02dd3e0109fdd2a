"""Drawing true and predicted boxes on a picture, for people to look at."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from bbu_train.images.files import open_upright
from bbu_train.images.fonts import font
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of

Box = tuple[float, ...]  # x1, y1, x2, y2
Color = tuple[int, int, int]

LEGIBLE = 800  # pixels of the longer side for which the widths of lines and the sizes of letters are given
LINE, LETTERS = 2, 15  # pixels at that size
SMALLEST = 11  # pixels: smaller letters cannot be read
MAX_LENGTH = 40  # characters of a label; a model in its first steps may write far more
MAX_CLASSES = 12  # in a legend
DARK: Color = (24, 27, 33)
WHITE: Color = (255, 255, 255)
COLORS: list[Color] = [
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


class ClassColors:
    """The colour of each class, the same in all pictures of all commands that give the same `classes`.

    Each of `classes`, in sorted order, starts at the colour that its name hashes to, and takes the next free one; when
    all are taken, it shares that of its hash, as any other class does.
    """

    def __init__(self, classes: Iterable[str]) -> None:
        self._chosen: dict[str, int] = {}
        for name in sorted(set(classes)):
            self._choose(name)

    def __getitem__(self, name: str) -> Color:
        return COLORS[self._chosen.get(name, _hash(name))]

    def _choose(self, name: str) -> None:
        index, taken = _hash(name), set(self._chosen.values())
        while index in taken and len(taken) < len(COLORS):
            index = (index + 1) % len(COLORS)
        self._chosen[name] = index


def _hash(name: str) -> int:
    return hashlib.blake2b(name.encode()).digest()[0] % len(COLORS)


def true_classes(pictures: Iterable[Picture]) -> set[str]:
    """Return the classes of the true objects of `pictures`."""
    return {class_of(each.description) for picture in pictures for each in picture.objects or ()}


def overlay(picture: Picture, prediction: Prediction, score_threshold: float, colors: ClassColors) -> Image.Image:
    """Return the upright picture with its true boxes (white, dashed) and its predicted boxes (solid), above a legend.

    Only predictions with a score of at least `score_threshold` are drawn. The colour of a predicted box shows its
    class, and the legend has those of the true classes too. Small pictures are enlarged by a whole number.
    """
    image = open_upright(picture.path)
    factor = max(1, round(LEGIBLE / max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    unit = max(image.size) / LEGIBLE
    true_boxes = [(tuple(factor * side for side in item.box_xyxy), item.description) for item in picture.objects or ()]
    predicted = sorted(
        (float(score), tuple((box * factor).tolist()), text)
        for box, score, text in zip(prediction.boxes_xyxy, prediction.scores, prediction.descriptions, strict=True)
        if score >= score_threshold
    )
    drawn_classes = sorted({class_of(text) for *_, text in true_boxes + predicted})
    draw = ImageDraw.Draw(image)
    for box, _ in true_boxes:
        _draw_dashed(draw, box, unit)
    for _, box, text in predicted:
        _draw_solid(draw, box, colors[class_of(text)], unit)
    labels = [(box, f"{_shorten(text)} {score:.2f}", colors[class_of(text)]) for score, box, text in predicted[::-1]]
    _draw_labels(draw, labels + [(box, _shorten(text), DARK) for box, text in true_boxes], unit)
    num_true = None if picture.objects is None else len(true_boxes)
    legend = {name: colors[name] for name in drawn_classes}
    return _add_legend(image, num_true, len(predicted), score_threshold, legend, unit)


def _draw_solid(draw: ImageDraw.ImageDraw, box: Box, color: Color, unit: float) -> None:
    """Draw a box with a thin dark rim, so that it shows on any background. The corners may come in any order."""
    x1, y1, x2, y2 = min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])
    width, rim = max(2, round(LINE * 1.5 * unit)), max(1, round(unit))
    draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline=DARK, width=width + 2 * rim)
    draw.rectangle((x1, y1, x2, y2), outline=color, width=width)


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Box, unit: float) -> None:
    """Draw a box of white dashes on a dark line."""
    x1, y1, x2, y2 = box
    width, dash = max(1, round(LINE * unit)), 8 * unit
    draw.rectangle((x1, y1, x2, y2), outline=DARK, width=width)
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], dtype=float)
    for start, end in pairwise(corners):
        length = float(np.abs(end - start).sum())
        for offset in np.arange(0, length, 2 * dash):
            ends = [start + (end - start) * at / length for at in (offset, min(offset + dash, length))]
            draw.line([tuple(point) for point in ends], fill=WHITE, width=width)


def _draw_labels(draw: ImageDraw.ImageDraw, labels: list[tuple[Box, str, Color]], unit: float) -> None:
    """Draw each label at its box where it covers no earlier label, and leave out those without such a place.

    Many labels are drawn smaller, down to 0.6 of the usual size.
    """
    unit *= min(1, max(0.6, math.sqrt(20 / max(1, len(labels)))))
    size, pad = max(SMALLEST, round(LETTERS * unit)), max(1, round(2 * unit))
    occupied: list[Box] = []
    for (x1, y1, x2, y2), text, color in labels:
        letters = font(size, text)
        width, height = draw.textlength(text, font=letters) + 2 * pad, size * 1.2 + 2 * pad
        corners = [(x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, x2 - width)]
        candidates = (_place(corner, width, height, draw.im.size) for corner in corners)
        free = (candidate for candidate in candidates if not any(_overlap(candidate, other) for other in occupied))
        place = next(free, None)
        if place is None:
            continue
        occupied.append(place)
        draw.rectangle(place, fill=color)
        middle = (place[1] + place[3]) / 2
        draw.text((place[0] + pad, middle), text, font=letters, fill=_text_color(color), anchor="lm")


def _shorten(text: str) -> str:
    """Return `text` on one line of at most `MAX_LENGTH` characters."""
    line = " ".join(text.split()) or "?"
    return line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 3] + "..."


def _place(corner: tuple[float, float], width: float, height: float, size: tuple[int, int]) -> Box:
    """Return the rectangle of a label with its upper left corner near `corner`, moved into a picture of `size`."""
    x = max(0, min(corner[0], size[0] - width))
    y = max(0, min(corner[1], size[1] - height))
    return x, y, x + width, y + height


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_color(background: Color) -> Color:
    return DARK if 0.3 * background[0] + 0.6 * background[1] + 0.1 * background[2] > 110 else WHITE


def _add_legend(
    image: Image.Image,
    num_true: int | None,
    num_predicted: int,
    threshold: float,
    colors: Mapping[str, Color],
    unit: float,
) -> Image.Image:
    """Return the picture above a strip that explains the boxes, in as many lines as the words need."""
    size, gap = max(SMALLEST, round(LETTERS * unit)), round(10 * unit)
    minimum = f", score {threshold:.2f} or more" if threshold else ""
    entries: list[tuple[Color | None, str]] = [] if num_true is None else [(None, f"true: {num_true}")]
    entries.append((WHITE, f"predicted{minimum}: {num_predicted}"))
    entries += [(color, _shorten(name)) for name, color in list(colors.items())[:MAX_CLASSES]]
    if len(colors) > MAX_CLASSES:
        entries.append((DARK, f"and {len(colors) - MAX_CLASSES} classes more"))
    x, y, positions = gap, image.height + gap, []
    for _, text in entries:
        width = 2.2 * size + font(size, text).getlength(text)
        if x > gap and x + width > image.width:
            x, y = gap, y + round(1.6 * size)
        positions.append((x, y))
        x += width + 2 * gap
    sheet = Image.new("RGB", (image.width, y + size + gap), DARK)
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    for (x, y), (color, text) in zip(positions, entries, strict=True):
        sample = (x, y, x + 1.6 * size, y + size)
        if color is None:
            _draw_dashed(draw, sample, unit)
        else:
            draw.rectangle(sample, outline=color, width=max(2, round(LINE * 1.5 * unit)))
        draw.text((x + 2.2 * size, y + size / 2), text, font=font(size, text), fill=WHITE, anchor="lm")
    return sheet
