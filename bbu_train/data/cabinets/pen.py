"""A pen that draws in rack units (U: 44 mm, the height of the lowest equipment), from the corner of a part."""

import math
from dataclasses import dataclass, replace

from PIL import ImageDraw

from bbu_train.images.fonts import font

Color = tuple[int, int, int]
Fill = Color | tuple[int, int, int, int] | int
"""A colour, a colour with its opacity, or the value of a mask."""


def shade(color: Color, factor: float) -> Color:
    """Return a lighter (factor above 1) or darker colour."""
    red, green, blue = (max(0, min(255, round(channel * factor))) for channel in color)
    return red, green, blue


@dataclass(frozen=True)
class Pen:
    """Draws on `canvas`. The origin (`left`, `top`) and the rack unit `unit` are in pixels of the canvas."""

    canvas: ImageDraw.ImageDraw
    left: float
    top: float
    unit: float

    def at(self, x: float, y: float) -> "Pen":
        """Return the same pen with its origin moved by (x, y)."""
        return replace(self, left=self.left + x * self.unit, top=self.top + y * self.unit)

    def pixels(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        """Convert points from rack units to pixels of the canvas."""
        return [(self.left + x * self.unit, self.top + y * self.unit) for x, y in points]

    def rectangle(self, x: float, y: float, width: float, height: float, fill: Fill, *, radius: float = 0) -> None:
        corners = self.pixels((x, y), (x + max(width, 0), y + max(height, 0)))
        if radius * self.unit >= 2:
            self.canvas.rounded_rectangle(corners, radius * self.unit, fill=fill)
        else:
            self.canvas.rectangle(corners, fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: Fill) -> None:
        self.canvas.ellipse(self.pixels((x - radius, y - radius), (x + radius, y + radius)), fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: Fill) -> None:
        self.canvas.polygon(self.pixels(*points), fill=fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: Fill) -> None:
        thickness = max(1, round(width * self.unit))
        self.canvas.line(self.pixels(*points), fill=fill, width=thickness, joint="curve" if thickness > 3 else None)

    def gradient(self, x: float, y: float, width: float, height: float, color: Color, *, contrast: float) -> None:
        """Draw a rectangle lit from above: lighter than `color` by `contrast` at the top, darker at the bottom."""
        num_bands = 12
        for band in range(num_bands):
            factor = 1 + contrast * (1 - 2 * band / (num_bands - 1))
            self.rectangle(x, y + height * band / num_bands, width, height / num_bands, shade(color, factor))

    def plate(self, x: float, y: float, width: float, height: float, color: Color, *, contrast: float = 0.08) -> None:
        """Draw a sheet of metal: lit from above, with a bright upper and a dark lower edge."""
        edge = 0.035
        self.gradient(x, y, width, height, color, contrast=contrast)
        self.rectangle(x, y, width, edge, shade(color, 1.22))
        self.rectangle(x, y + height - edge, width, edge, shade(color, 0.55))
        self.rectangle(x, y, edge, height, shade(color, 1.1))
        self.rectangle(x + width - edge, y, edge, height, shade(color, 0.62))

    def text(self, x: float, y: float, text: str, *, height: float, fill: Fill, max_width: float) -> None:
        """Draw `text` centred on (x, y) in letters of `height`, or smaller so that it fits into `max_width`."""
        size = max(6, round(height * self.unit))
        width = font(size, text).getlength(text) / self.unit
        if width > max_width:
            size = max(6, math.floor(size * max_width / width))
        self.canvas.text(self.pixels((x, y))[0], text, fill=fill, font=font(size, text), anchor="mm")


def ring(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return points on a circle: the outline of a round part."""
    angles = [2 * math.pi * step / 24 for step in range(24)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
