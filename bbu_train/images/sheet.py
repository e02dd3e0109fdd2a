"""Sheets: pictures with marks in an even grid, below a title and above a legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from PIL import Image, ImageDraw

from bbu_train.images.colors import DARK, GREY, UNKNOWN, WHITE, ClassColors, Color
from bbu_train.images.fonts import font
from bbu_train.images.marks import (
    LETTERS,
    MAX_LENGTH,
    SMALLEST,
    Mark,
    draw_dashed,
    draw_marks,
    draw_solid,
    fit,
    shorten,
)

LEGIBLE = 800  # pixels of a drawing's longer side, for which the unit of lines and letters is 1
SHORTEST_SIDE = 0.4  # of a cell, as a share of its longer side: labels of a narrow picture stand beside it
MAX_COLUMNS = 4
MAX_CLASSES = 30  # in a legend


@dataclass(frozen=True)
class Panel:
    """A picture to draw.

    image    the picture
    marks    its boxes, those first whose labels matter most
    caption  a line above it
    border   a colour around it, or None
    """

    image: Image.Image
    marks: Sequence[Mark]
    caption: str
    border: Color | None


class Entry(NamedTuple):
    """An entry of a legend: a box as it is drawn, or with `is_dashed=None` a patch of the colour."""

    text: str
    color: Color
    is_dashed: bool | None


def cell_size(panels: Sequence[Panel], longer_side: int) -> tuple[int, int]:
    """Return the (width, height) of a cell that suits most of the pictures: it has the median of their shapes."""
    shape = median(panel.image.width / panel.image.height for panel in panels)
    shape = min(max(shape, SHORTEST_SIDE), 1 / SHORTEST_SIDE)
    return (longer_side, round(longer_side / shape)) if shape >= 1 else (round(longer_side * shape), longer_side)


def full_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) of a cell that shows every pixel: small pictures are enlarged by a whole number."""
    factor = max(1, round(LEGIBLE / max(image.size)))
    shortest = round(SHORTEST_SIDE * factor * max(image.size))
    return max(factor * image.width, shortest), max(factor * image.height, shortest)


def num_columns(num_panels: int) -> int:
    """Return the number of columns with the fewest empty cells; of several, that of the squarest grid."""

    def unevenness(columns: int) -> tuple[int, int, int]:
        rows = math.ceil(num_panels / columns)
        return rows * columns - num_panels, abs(columns - rows), -columns

    squarest = math.ceil(math.sqrt(num_panels))
    return min(range(min(squarest, MAX_COLUMNS), min(num_panels, MAX_COLUMNS) + 1), key=unevenness)


def draw_panel(panel: Panel, cell: tuple[int, int], unit: float) -> Image.Image:
    """Return the picture with its marks, as large as fits into `cell` (width, height), on grey of that size."""
    scale = min(cell[0] / panel.image.width, cell[1] / panel.image.height)
    size = max(1, round(scale * panel.image.width)), max(1, round(scale * panel.image.height))
    left, top = (cell[0] - size[0]) // 2, (cell[1] - size[1]) // 2
    drawing = Image.new("RGB", cell, GREY)
    drawing.paste(panel.image.resize(size, Image.Resampling.BICUBIC), (left, top))
    marks = [mark.moved(scale, left, top) for mark in panel.marks]
    draw_marks(ImageDraw.Draw(drawing), marks, (left, top, left + size[0], top + size[1]), unit)
    return drawing


def make_sheet(
    panels: Sequence[Panel], cell: tuple[int, int], title: str, legend: Sequence[Entry], unit: float
) -> Image.Image:
    """Return the panels in cells of equal size, each below its caption."""
    size, gap = max(SMALLEST, round(LETTERS * unit)), round(10 * unit)
    frame = round(4 * unit)
    strip = round(1.8 * size)
    columns = num_columns(len(panels))
    step_x, step_y = cell[0] + 2 * frame + gap, cell[1] + 2 * frame + strip + gap
    head = round(2.4 * size) if title else 0
    width, height = columns * step_x + gap, head + math.ceil(len(panels) / columns) * step_y + gap
    sheet = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(sheet)
    if title:
        letters = font(round(1.4 * size), title)
        draw.text((gap, head / 2 + gap / 2), fit(title, letters, width - 2 * gap), DARK, letters, anchor="lm")
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        x, y = gap + column * step_x, head + gap + row * step_y
        outer = x, y, x + cell[0] + 2 * frame - 1, y + strip + cell[1] + 2 * frame - 1
        draw.rectangle(outer, fill=panel.border or GREY)
        letters = font(size, panel.caption)
        caption = fit(panel.caption, letters, cell[0] - gap)
        draw.text((x + frame + gap // 2, y + frame + strip / 2 - 1), caption, DARK, letters, anchor="lm")
        sheet.paste(draw_panel(panel, cell, unit), (x + frame, y + frame + strip))
    return _add_legend(sheet, legend, size, gap, unit)


def class_entries(panels: Sequence[Panel], colors: ClassColors) -> list[Entry]:
    """Return an entry for each colour with the known classes that are drawn in it, and one for all other classes.

    Classes may be more than colours: those that share one are together, "a or b", and the labels of the boxes tell them
    apart. A long entry goes on in a next one.
    """
    drawn = {mark.class_name for panel in panels for mark in panel.marks if mark.color != WHITE}
    known = [name for name in colors.classes or sorted(drawn) if name in drawn]
    groups: dict[Color, list[str]] = {}
    for name in known[:MAX_CLASSES]:
        parts, text = groups.setdefault(colors[name], []), shorten(name)
        if parts and len(longer := f"{parts[-1]} or {text}") <= MAX_LENGTH:
            parts[-1] = longer
        else:
            parts.append(f"or {text}" if parts else text)
    entries = [Entry(part, color, None) for color, parts in groups.items() for part in parts]
    if num_more := len(known[MAX_CLASSES:]):
        entries.append(Entry(f"and {num_more} more", DARK, None))
    if len(known) < len(drawn):
        entries.append(Entry("no class of the data", UNKNOWN, None))
    return entries


def _add_legend(sheet: Image.Image, legend: Sequence[Entry], size: int, gap: int, unit: float) -> Image.Image:
    """Return the sheet above a dark strip that explains the marks, in as many lines as the words need."""
    x, y, positions = gap, sheet.height + gap, []
    for entry in legend:
        width = 2.2 * size + font(size, entry.text).getlength(entry.text)
        if x > gap and x + width > sheet.width:
            x, y = gap, y + round(1.7 * size)
        positions.append((x, y))
        x += width + 2 * gap
    whole = Image.new("RGB", (sheet.width, y + size + gap), DARK)
    whole.paste(sheet)
    draw = ImageDraw.Draw(whole)
    for (x, y), entry in zip(positions, legend, strict=True):
        box = x, y, x + 1.6 * size, y + size
        if entry.is_dashed is None:
            draw.rectangle(box, fill=entry.color)
        else:
            (draw_dashed if entry.is_dashed else draw_solid)(draw, box, entry.color, unit)
        letters = font(size, entry.text)
        text = fit(entry.text, letters, sheet.width - x - 2.2 * size)
        draw.text((x + 2.2 * size, y + size / 2), text, WHITE, letters, anchor="lm")
    return whole
