"""A pen that draws in rack units (U, 44 mm: the height of the lowest equipment) from the corner of a part."""

import math
from dataclasses import dataclass, replace

from PIL import ImageDraw

from bbu_train.images.fonts import font

Colour = tuple[int, int, int]
Fill = Colour | tuple[int, int, int, int] | int
"""A colour, one with its opacity, or on a mask the value alone."""


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made lighter (factor above 1) or darker."""
    return tuple(max(0, min(255, round(channel * factor))) for channel in colour)


@dataclass(frozen=True)
class Pen:
    """Draws on `canvas`; (`left`, `top`) is its origin and `unit` one rack unit, both in pixels of the canvas."""

    canvas: ImageDraw.ImageDraw
    left: float
    top: float
    unit: float

    def at(self, x: float, y: float) -> "Pen":
        """The same pen with its origin moved by (x, y)."""
        return replace(self, left=self.left + x * self.unit, top=self.top + y * self.unit)

    def pixels(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
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
        thick = max(1, round(width * self.unit))
        self.canvas.line(self.pixels(*points), fill=fill, width=thick, joint="curve" if thick > 3 else None)

    def gradient(self, x: float, y: float, width: float, height: float, colour: Colour, *, contrast: float) -> None:
        """A rectangle lit from above: lighter than `colour` by `contrast` at the top, darker at the bottom."""
        num_bands = 12
        for band in range(num_bands):
            factor = 1 + contrast * (1 - 2 * band / (num_bands - 1))
            self.rectangle(x, y + height * band / num_bands, width, height / num_bands, shade(colour, factor))

    def plate(self, x: float, y: float, width: float, height: float, colour: Colour, *, contrast: float = 0.08) -> None:
        """A sheet of metal: lit from above, with a bright upper and a dark lower edge."""
        edge = 0.035
        self.gradient(x, y, width, height, colour, contrast=contrast)
        self.rectangle(x, y, width, edge, shade(colour, 1.22))
        self.rectangle(x, y + height - edge, width, edge, shade(colour, 0.55))
        self.rectangle(x, y, edge, height, shade(colour, 1.1))
        self.rectangle(x + width - edge, y, edge, height, shade(colour, 0.62))

    def text(self, x: float, y: float, text: str, *, height: float, fill: Fill, max_width: float) -> None:
        """`text` centred on (x, y), its letters `height` high, smaller if it would be wider than `max_width`."""
        size = max(6, round(height * self.unit))
        wide = font(size, text).getlength(text) / self.unit
        if wide > max_width:
            size = max(6, math.floor(size * max_width / wide))
        self.canvas.text(self.pixels((x, y))[0], text, fill=fill, font=font(size, text), anchor="mm")


def ring(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Points on a circle: the outline of a round part."""
    turn = [2 * math.pi * step / 24 for step in range(24)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in turn]
