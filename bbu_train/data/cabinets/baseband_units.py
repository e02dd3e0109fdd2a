"""Drawing baseband units (BBUs) of four makes, `width` x `height` rack units from their upper left corner."""

import numpy as np

from bbu_train.data.cabinets.pen import Color, Pen, shade

Random = np.random.Generator

DARK = (22, 24, 27)
GREEN = (40, 235, 90)
RED = (255, 45, 35)
AMBER = (255, 180, 40)


def draw_bbu(pen: Pen, make: str, width: float, height: float, *, alarm: bool, random: Random) -> None:
    """Draw a BBU. An alarm shows as red lamps instead of green ones."""
    lamp = RED if alarm else GREEN
    {"huawei": _huawei, "zte": _zte, "ericsson": _ericsson, "nokia": _nokia}[make](pen, width, height, lamp, random)


def _huawei(pen: Pen, width: float, height: float, lamp: Color, random: Random) -> None:
    """Silver, a slatted fan module on the left, two columns of flat boards with red ejectors, power on the right."""
    silver = (198, 200, 201)
    pen.plate(0, 0, width, height, silver)
    _slatted_fan(pen.at(0.1, 0.1), 0.95, height - 0.2, (120, 123, 126))
    power = 0.9
    pen.plate(width - power, 0.08, power - 0.08, height - 0.16, (170, 172, 174))
    pen.rectangle(width - power + 0.15, 0.22, 0.5, min(0.4, height - 0.5), DARK, radius=0.04)
    _lamps(pen.at(width - power + 0.2, height - 0.32), 2, lamp, 0.18)
    num_rows = max(2, round(height / 0.5))
    column, row = (width - 1.15 - power) / 2, (height - 0.16) / num_rows
    for index in range(2 * num_rows):
        board = pen.at(1.12 + (index % 2) * column, 0.08 + (index // 2) * row)
        _flat_board(board, column - 0.04, row - 0.03, silver, ejector=(200, 28, 40), lamp=lamp, random=random)


def _zte(pen: Pen, width: float, height: float, lamp: Color, random: Random) -> None:
    """Pale blue, upright boards with blue levers, a fan with a round grille on the right."""
    pale = (206, 219, 230)
    blue = (25, 95, 185)
    pen.plate(0, 0, width, height, pale)
    pen.rectangle(0.04, height - 0.16, width - 0.08, 0.1, blue)
    fan = min(height, 1.7)
    num_boards = max(3, int((width - fan - 0.2) / 0.85))
    board = (width - fan - 0.2) / num_boards
    for index in range(num_boards):
        card = pen.at(0.1 + index * board, 0.06)
        card.plate(0, 0, board - 0.05, height - 0.26, shade(pale, random.uniform(0.86, 1.0)))
        card.rectangle(0.06, 0.06, board - 0.17, 0.12, blue, radius=0.03)
        card.rectangle(0.06, height - 0.46, board - 0.17, 0.12, blue, radius=0.03)
        for port in range(max(1, int((height - 0.8) / 0.3))):
            _port(card.at(board / 2 - 0.2, 0.42 + port * 0.3), 0.32, 0.2, random)
        card.disc(board / 2 - 0.02, 0.3, 0.07, lamp if index % 2 == 0 else GREEN)
    _round_fan(pen.at(width - fan - 0.04, 0.04), fan, height - 0.24, (150, 166, 180))


def _ericsson(pen: Pen, width: float, height: float, lamp: Color, random: Random) -> None:
    """Graphite, a perforated strip on top, one or two long rows of ports, pull handles at both ends."""
    graphite = (66, 70, 75)
    pen.plate(0, 0, width, height, graphite, contrast=0.14)
    for column in range(int((width - 0.3) / 0.16)):
        pen.rectangle(0.18 + column * 0.16, 0.09, 0.09, 0.13, (18, 19, 21))
    for x in (0.14, width - 0.36):
        pen.rectangle(x - 0.02, 0.36, 0.27, height - 0.48, (30, 32, 35), radius=0.08)
        pen.rectangle(x, 0.34, 0.2, height - 0.48, (150, 154, 158), radius=0.08)
    num_rows = max(1, round((height - 0.4) / 0.7))
    row = (height - 0.4) / num_rows
    for line in range(num_rows):
        shelf = pen.at(0.55, 0.3 + line * row)
        shelf.rectangle(0, 0.02, width - 1.1, row - 0.06, (44, 47, 51))
        for port in range(int((width - 2.0) / 0.42)):
            _port(shelf.at(0.5 + port * 0.42, 0.08), 0.34, min(0.34, row - 0.24), random)
            shelf.rectangle(0.55 + port * 0.42, row - 0.16, 0.22, 0.05, (190, 195, 200))
        for x in (0.12, width - 1.4):
            _lamps(shelf.at(x, row / 2 - 0.14), 2, lamp, 0.18)


def _nokia(pen: Pen, width: float, height: float, lamp: Color, random: Random) -> None:
    """Navy, a square double fan in the middle, white levers at the sides of the boards left and right of it."""
    navy = (42, 66, 122)
    pen.plate(0, 0, width, height, navy, contrast=0.16)
    fan = min(height * 0.9, 1.5)
    side = (width - 2 * fan) / 2
    for index in range(2):
        _round_fan(pen.at(side + index * fan, 0.08), fan - 0.05, height - 0.16, (58, 84, 146))
    num_rows = max(1, round(height / 0.66))
    row = (height - 0.16) / num_rows
    for left in (0.08, width - side + 0.04):
        for line in range(num_rows):
            board = pen.at(left, 0.08 + line * row)
            board.plate(0, 0, side - 0.12, row - 0.05, (88, 112, 168))
            board.rectangle(0.04, 0.06, 0.14, row - 0.17, (240, 242, 244), radius=0.05)
            board.rectangle(side - 0.3, 0.06, 0.14, row - 0.17, (240, 242, 244), radius=0.05)
            for port in range(max(1, int((side - 1.1) / 0.36))):
                _port(board.at(0.48 + port * 0.36, row / 2 - 0.15), 0.28, 0.24, random)
            board.disc(0.3, row / 2, 0.09, lamp)


def _flat_board(
    pen: Pen, width: float, height: float, color: Color, *, ejector: Color, lamp: Color, random: Random
) -> None:
    """Draw a board on its side. About one board in five is only a cover with a dotted line of holes."""
    pen.plate(0, 0, width, height, shade(color, random.uniform(0.8, 0.95)))
    for x in (0.03, width - 0.13):
        pen.rectangle(x, 0.06, 0.1, height - 0.13, ejector, radius=0.03)
    if random.random() < 0.2:
        for hole in range(int((width - 0.5) / 0.16)):
            pen.rectangle(0.25 + hole * 0.16, height / 2 - 0.04, 0.09, 0.08, (70, 72, 74))
        return
    pen.disc(0.27, height / 2, min(0.09, height / 4), lamp)
    for port in range(int((width - 0.75) / 0.36)):
        _port(pen.at(0.44 + port * 0.36, height * 0.2), 0.28, height * 0.55, random)


def _port(pen: Pen, width: float, height: float, random: Random) -> None:
    """Draw an optical or network socket. Some hold a plug."""
    pen.rectangle(-0.02, -0.02, width + 0.04, height + 0.04, (205, 208, 210))
    pen.rectangle(0, 0, width, height, DARK)
    kind = random.integers(4)
    if kind == 0:
        pen.rectangle(width * 0.2, height * 0.15, width * 0.6, height * 0.7, (45, 120, 215))
    elif kind == 1:
        pen.rectangle(width * 0.25, height * 0.5, width * 0.5, height * 0.35, (196, 160, 60))


def _lamps(pen: Pen, num_lamps: int, lamp: Color, step: float) -> None:
    for index in range(num_lamps):
        pen.disc(index * step, 0.08, 0.085, (16, 18, 20))
        pen.disc(index * step, 0.08, 0.065, lamp)


def _slatted_fan(pen: Pen, width: float, height: float, color: Color) -> None:
    pen.plate(0, 0, width, height, color)
    num_slats = max(3, int((height - 0.5) / 0.15))
    for slat in range(num_slats):
        pen.rectangle(0.12, 0.12 + slat * 0.15, width - 0.24, 0.08, (28, 30, 33))
    pen.rectangle(0.2, height - 0.3, width - 0.4, 0.16, (215, 217, 218), radius=0.06)


def _round_fan(pen: Pen, width: float, height: float, color: Color) -> None:
    """Draw a fan behind a grille of rings. It stays round, in the middle of its plate."""
    pen.plate(0, 0, width, height, color)
    x, y, radius = width / 2, height / 2, min(width, height) * 0.44
    pen.disc(x, y, radius, (20, 22, 25))
    for step in range(3, 0, -1):
        pen.disc(x, y, radius * (0.3 * step - 0.02), shade(color, 0.85))
        pen.disc(x, y, radius * (0.3 * step - 0.1), (26, 28, 31))
    pen.disc(x, y, radius * 0.24, shade(color, 1.1))
    for dx, dy in ((1, 0), (0, 1)):
        ends = [(x - dx * radius, y - dy * radius), (x + dx * radius, y + dy * radius)]
        pen.line(ends, 0.05, shade(color, 0.9))
