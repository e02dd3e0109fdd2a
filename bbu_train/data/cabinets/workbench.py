"""Synthetic images of a few loose parts on a workbench, each a function of its key: easier than cabinets."""

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from bbu_train.data.cabinets import parts
from bbu_train.data.cabinets.baseband_units import draw_bbu
from bbu_train.data.cabinets.cabinet import light
from bbu_train.data.cabinets.pen import Pen, shade
from bbu_train.data.cabinets.plan import LABEL, SCREW
from bbu_train.data.cabinets.words import describe, label_text
from bbu_train.errors import InputError
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object

Random = np.random.Generator
Box = tuple[float, float, float, float]

SIDES = (0.19, 0.57)  # side of the square of a part's area, as a share of the side of the square of the picture's
SHAPES = {"bbu": (5.6, 3.2), "baffle": (4.0, 1.0), "screw": (2 * SCREW, 2 * SCREW), "label": (1.6, LABEL)}
"""Width and height of a part in rack units."""
MAT = (62, 124, 96)  # no part has this colour
MAKES = ("zte", "nokia")
PAPERS = ((244, 244, 238), (250, 226, 80))
SCALE = 2  # parts are drawn at this many times the picture's size, then reduced
GAP = 3  # pixels between two parts, at least
MAX_TRIES = 60  # boxes for a part, and parts for an image


def draw(
    key: tuple[int | str, ...], *, width: int, height: int, min_objects: int, max_objects: int, language: str
) -> tuple[Image.Image, tuple[Object, ...]]:
    """Return an image of `width` x `height` pixels and its `min_objects` to `max_objects` objects.

    Equal keys give equal images. Each class is as likely as any other, every part lies whole and apart from others
    somewhere in the image, and its size is one of a threefold range. Raises InputError if so many parts do not fit.
    """
    random = generator("workbench", *key)
    num_objects = int(random.integers(min_objects, max_objects + 1))
    canvas = Image.new("RGB", (width * SCALE, height * SCALE))
    canvas_draw = ImageDraw.Draw(canvas, "RGBA")
    mat = shade(MAT, random.uniform(0.85, 1.1))
    Pen(canvas_draw, 0, 0, SCALE).gradient(0, 0, width, height, mat, contrast=0.08)
    objects = []
    for kind, box in _place(num_objects, width, height, random):
        left, top, right, _ = box
        pen = Pen(canvas_draw, SCALE * left, SCALE * top, SCALE * (right - left) / SHAPES[kind][0])
        levels = _paint(pen, kind, language, random)
        objects.append(Object(box, describe(language, kind, *levels)))
    picture = canvas.resize((width, height), Image.Resampling.BOX)
    return light(picture, random), tuple(objects)


def _place(num_objects: int, width: int, height: int, random: Random) -> list[tuple[str, Box]]:
    """Return the class and the box, in whole pixels, of every part. Large parts may fill the image: then all move."""
    placed = []
    for _ in range(MAX_TRIES):
        if len(placed) == num_objects:
            return placed
        kind = tuple(SHAPES)[random.integers(len(SHAPES))]
        box = next((box for box in _boxes(kind, width, height, random) if not _is_near(box, placed)), None)
        placed = [*placed, (kind, box)] if box else []
    raise InputError(
        f"{num_objects} parts do not fit into a synthetic image of {width} x {height} pixels. Lower data.max_objects."
    )


def _boxes(kind: str, width: int, height: int, random: Random) -> Iterator[Box]:
    """Yield boxes of random size and place that lie inside the image."""
    aspect = SHAPES[kind][0] / SHAPES[kind][1]
    for _ in range(MAX_TRIES):
        side = math.sqrt(width * height) * math.exp(random.uniform(*map(math.log, SIDES)))
        box_width, box_height = round(side * math.sqrt(aspect)), round(side / math.sqrt(aspect))
        if box_width <= width - 2 * GAP and box_height <= height - 2 * GAP:
            left = int(random.integers(GAP, width - GAP - box_width + 1))
            top = int(random.integers(GAP, height - GAP - box_height + 1))
            yield float(left), float(top), float(left + box_width), float(top + box_height)


def _is_near(box: Box, placed: list[tuple[str, Box]]) -> bool:
    left, top, right, bottom = box
    return any(
        left < x2 + GAP and x1 < right + GAP and top < y2 + GAP and y1 < bottom + GAP for _, (x1, y1, x2, y2) in placed
    )


def _paint(pen: Pen, kind: str, language: str, random: Random) -> tuple[str, ...]:
    """Paint a part and return the levels of its description below the class."""
    width, height = SHAPES[kind]
    if kind == "bbu":
        make = MAKES[random.integers(len(MAKES))]
        draw_bbu(pen, make, width, height, alarm=False, random=random)
        return (make,)
    if kind == "baffle":
        parts.draw_baffle(pen, True, width, height)
        return ("installed",)
    if kind == "screw":
        fitting = ("correct", "loose")[random.integers(2)]
        parts.draw_screw(pen.at(SCREW, SCREW), fitting, SCREW, random.uniform(0, 2 * math.pi))
        return (fitting,)
    text = label_text(language, random) if random.random() < 0.5 else None
    parts.draw_label(pen, text, width, height, paper=PAPERS[random.integers(len(PAPERS))], random=random)
    return ("readable" if text else "unreadable",)
