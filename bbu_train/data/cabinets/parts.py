"""Drawing what a rack holds besides BBUs: baffles, slots, screws, labels, cables, and equipment without annotation."""

import math

import numpy as np

from bbu_train.data.cabinets.baseband_units import AMBER, DARK, RED
from bbu_train.data.cabinets.pen import Color, Pen, shade

Random = np.random.Generator


def draw_baffle(pen: Pen, installed: bool, width: float, height: float) -> None:
    """Draw an installed baffle (a black panel of slanted fins) or a missing one (two yellow brackets on bare mesh)."""
    if installed:
        pen.plate(0, 0, width, height, (58, 60, 62), contrast=0.2)
        num_fins = int((width - 0.3) / 0.3)
        for fin in range(num_fins):
            x = 0.2 + fin * (width - 0.4) / num_fins
            slant = [(x, height - 0.12), (x + 0.14, 0.12), (x + 0.24, 0.12), (x + 0.1, height - 0.12)]
            pen.polygon(slant, (138, 141, 144))
        return
    draw_opening(pen, width, height)
    for row in range(int((height - 0.3) / 0.17)):
        for column in range(int((width - 1.2) / 0.17)):
            pen.rectangle(0.65 + column * 0.17 + 0.085 * (row % 2), 0.18 + row * 0.17, 0.09, 0.09, (104, 112, 120))
    for x in (0.06, width - 0.46):
        pen.plate(x, 0.08, 0.4, height - 0.16, (214, 170, 44))
        pen.disc(x + 0.2, height / 2, 0.1, DARK)


def draw_opening(pen: Pen, width: float, height: float) -> None:
    """Draw an empty slot with its depth: lit side walls and floor, a black back."""
    depth = min(0.42, height * 0.3)
    pen.rectangle(0, 0, width, height, (12, 13, 15))
    pen.polygon([(0, 0), (depth, depth), (depth, height - depth), (0, height)], (42, 45, 49))
    right = [(width, 0), (width - depth, depth), (width - depth, height - depth), (width, height)]
    pen.polygon(right, (34, 36, 40))
    floor = [(0, height), (depth, height - depth), (width - depth, height - depth), (width, height)]
    pen.polygon(floor, (58, 61, 66))


def draw_filled_slot(pen: Pen, width: float, height: float, color: Color) -> None:
    """Draw a blanking panel: bare metal with a pressed frame and two bow handles."""
    pen.plate(0, 0, width, height, color, contrast=0.12)
    pen.rectangle(0.35, 0.16, width - 0.7, height - 0.32, shade(color, 0.8))
    pen.gradient(0.39, 0.2, width - 0.78, height - 0.4, shade(color, 0.97), contrast=0.06)
    for x in (0.62, width - 0.78):
        pen.rectangle(x + 0.05, 0.26, 0.16, height - 0.48, shade(color, 0.5), radius=0.07)
        pen.rectangle(x, 0.22, 0.16, height - 0.48, (236, 238, 238), radius=0.07)


def draw_neutral(pen: Pen, width: float, height: float, random: Random) -> None:
    """Draw equipment without annotation: breakers, a fibre tray or a cable manager."""
    (_breakers, _fibre_tray, _cable_manager)[random.integers(3)](pen, width, height, random)


def _breakers(pen: Pen, width: float, height: float, random: Random) -> None:
    pen.plate(0, 0, width, height, (104, 108, 112))
    for index in range(int((width - 1.2) / 0.44)):
        breaker = pen.at(0.4 + index * 0.44, height / 2 - 0.32)
        breaker.plate(0, 0, 0.4, 0.66, (226, 226, 220))
        breaker.rectangle(0.12, 0.12 if random.random() < 0.8 else 0.34, 0.16, 0.22, (28, 30, 34))
    pen.disc(width - 0.35, height / 2, 0.13, (40, 42, 44))
    pen.disc(width - 0.35, height / 2, 0.1, AMBER)


def _fibre_tray(pen: Pen, width: float, height: float, random: Random) -> None:
    pen.plate(0, 0, width, height, (92, 96, 102))
    color = ((60, 170, 90), (60, 120, 205), (60, 185, 190))[random.integers(3)]
    num_rows = max(1, int(height / 0.5) - 1)
    for row in range(num_rows):
        y = (row + 0.5) * height / num_rows - 0.15
        for port in range(int((width - 0.5) / 0.32)):
            socket = pen.at(0.28 + port * 0.32, y)
            socket.rectangle(0, 0, 0.24, 0.3, color if random.random() < 0.85 else DARK)
            socket.rectangle(0.07, 0.08, 0.1, 0.14, DARK)


def _cable_manager(pen: Pen, width: float, height: float, random: Random) -> None:
    pen.plate(0, 0, width, height, (52, 54, 58), contrast=0.15)
    for strand in range(3):
        y = height * (0.36 + 0.14 * strand)
        color = CABLES[random.integers(len(CABLES))]
        points = [(x, y + 0.05 * math.sin(3 * x + strand)) for x in np.linspace(0, width, 16).tolist()]
        pen.line(points, 0.1, color)
    for x in np.linspace(0.5, width - 0.8, max(3, int(width / 1.4))).tolist():
        pen.rectangle(x, 0.1, 0.3, height - 0.2, (30, 31, 34), radius=0.1)
        pen.rectangle(x + 0.06, 0.14, 0.05, height - 0.28, (96, 98, 102))


def draw_ear(pen: Pen, width: float, height: float, color: Color) -> None:
    """Draw the flange by which a unit is bolted to its rail, with one oblong hole per rack unit."""
    pen.plate(0, 0, width, height, color)
    for row in range(max(1, round(height))):
        pen.rectangle(width / 2 - 0.12, row + 0.4, 0.24, 0.18, DARK, radius=0.08)


def draw_screw(pen: Pen, fitting: str, radius: float, angle: float) -> None:
    """Draw a screw or a screwed connector, centred on the pen.

    Values of `fitting`: "correct", a red torque mark runs straight from head to plate; "no mark", there is none;
    "loose", the head stands off its washer and the mark is broken; "seated" and "tilted", a connector.
    """
    if fitting in ("seated", "tilted"):
        _connector(pen, fitting == "tilted", radius, angle)
        return
    pen.disc(radius * 0.06, radius * 0.1, radius * 0.94, (46, 48, 50))
    pen.disc(0, 0, radius * 0.9, (214, 216, 216))
    shift = radius * 0.34 if fitting == "loose" else 0
    if shift:
        pen.disc(0, 0, radius * 0.62, (20, 21, 22))
        pen.line([(0, 0), (shift * 0.8, -shift * 0.8)], radius * 0.5, (120, 122, 124))
    head = pen.at(shift, -shift)
    head.disc(0, 0, radius * 0.62, (92, 95, 98))
    head.disc(-radius * 0.05, -radius * 0.06, radius * 0.52, (158, 161, 164))
    for turn in (angle, angle + math.pi / 2):
        x, y = 0.34 * radius * math.cos(turn), 0.34 * radius * math.sin(turn)
        head.line([(-x, -y), (x, y)], radius * 0.18, DARK)
    if fitting != "no mark":
        x, y = math.cos(angle + 0.6), math.sin(angle + 0.6)
        outer = [(0.55 * radius * x, 0.55 * radius * y), (0.92 * radius * x, 0.92 * radius * y)]
        inner = [(0, 0), (0.58 * radius * x, 0.58 * radius * y)]
        pen.line(outer, radius * 0.3, RED)
        # A loosened head has turned, so the two halves of the mark no longer meet.
        head.line([(-p, -q) for p, q in inner] if shift else inner, radius * 0.3, RED)


def _connector(pen: Pen, tilted: bool, radius: float, angle: float) -> None:
    """Draw a golden socket and its black plug: concentric if seated, at an angle that bares the socket if tilted."""
    pen.disc(0, 0, radius * 0.95, (120, 92, 30))
    pen.disc(0, 0, radius * 0.86, (226, 184, 74))
    if not tilted:
        pen.disc(0, 0, radius * 0.6, (28, 30, 33))
        pen.disc(-radius * 0.1, -radius * 0.1, radius * 0.3, (88, 92, 96))
        return
    pen.disc(0, 0, radius * 0.56, (24, 20, 12))
    pen.disc(0, 0, radius * 0.14, (250, 220, 130))
    direction = math.pi / 4 if math.cos(angle) > 0 else 3 * math.pi / 4
    x, y = math.cos(direction) * radius, math.sin(direction) * radius
    pen.line([(0.1 * x, 0.1 * y), (0.8 * x, 0.8 * y)], radius * 0.62, (28, 30, 33))
    pen.line([(0.2 * x, 0.2 * y), (0.7 * x, 0.7 * y)], radius * 0.16, (88, 92, 96))


def draw_label(pen: Pen, text: str | None, width: float, height: float, *, paper: Color, random: Random) -> None:
    """Draw a sticker with `text`, or a faded, unreadable one if `text` is None."""
    pen.rectangle(0.03, 0.04, width, height, (30, 31, 33))
    pen.rectangle(0, 0, width, height, paper if text else shade(paper, 0.82))
    pen.rectangle(0, 0, width, height * 0.1, shade(paper, 0.72))
    if text:
        pen.text(width / 2, height * 0.55, text, height=height * 0.72, fill=(16, 18, 24), max_width=width * 0.92)
        return
    for _ in range(6):
        x, y = random.uniform(0.05, 0.6) * width, random.uniform(0.3, 0.8) * height
        pen.line([(x, y), (x + width * random.uniform(0.15, 0.35), y)], height * 0.16, shade(paper, 0.62))


CABLES: tuple[Color, ...] = (
    (238, 198, 40),
    (242, 206, 60),
    (58, 190, 200),
    (236, 130, 45),
    (24, 25, 28),
    (36, 38, 42),
    (60, 110, 200),
    (170, 174, 178),
    (70, 160, 80),
)


def draw_cable(pen: Pen, points: list[tuple[float, float]], width: float, color: Color) -> None:
    """Draw a cable along `points`, with a boot at its socket, a soft shadow and a highlight."""
    pen.at(0.05, 0.07).line(points, width, (0, 0, 0, 90))
    pen.line(points, width, shade(color, 0.62))
    pen.line(points, width * 0.7, color)
    pen.at(-width * 0.12, -width * 0.12).line(points, width * 0.22, shade(color, 1.35))
    x, y = points[0]
    pen.rectangle(x - width * 0.8, y - width, width * 1.6, width * 1.6, shade(color, 0.7), radius=0.03)


def draw_rails(pen: Pen, positions: tuple[float, float], width: float, height: float, color: Color) -> None:
    """Draw the two upright rails, with three square holes per rack unit."""
    for x in positions:
        pen.rectangle(x, 0, width, height, color)
        pen.rectangle(x, 0, 0.06, height, shade(color, 1.2))
        pen.rectangle(x + width - 0.06, 0, 0.06, height, shade(color, 0.6))
        for hole in range(int(height * 3) + 1):
            pen.rectangle(x + width / 2 - 0.11, hole / 3 + 0.06, 0.22, 0.2, DARK)
