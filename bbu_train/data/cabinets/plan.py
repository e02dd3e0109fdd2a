"""The plan of a cabinet: the camera, the racks, their rows of equipment, and the sites of screws and labels."""

import math
from dataclasses import dataclass, replace

import numpy as np

from bbu_train.data.cabinets.pen import ring
from bbu_train.data.cabinets.words import MAKES
from bbu_train.errors import InputError

Random = np.random.Generator
Points = list[tuple[float, float]]

# Lengths in rack units:
POST = 0.7  # width of the cabinet's upright beside a rail
EAR = 0.8  # width of a rail, and of the ear of a unit that covers it
SCREW = 0.33  # radius of a screw
LABEL = 0.62  # height of a label

MIN_UNIT = 6  # pixels of the picture: with smaller rack units, screws and texts cannot be recognised


@dataclass(frozen=True)
class Camera:
    """A view of `width` x `height` pixels on a canvas that is `scale` times as large, turned by `angle` (radians).

    The canvas has `margin` more picture pixels on every side, so that the turned picture is filled to its corners.
    """

    width: int
    height: int
    scale: float
    margin: int
    angle: float

    @property
    def canvas_size(self) -> tuple[int, int]:
        """(width, height) in pixels of the canvas."""
        width, height = (round((side + 2 * self.margin) * self.scale) for side in (self.width, self.height))
        return width, height

    def coefficients(self) -> tuple[float, ...]:
        """Return PIL's affine map from points of the picture to points of the canvas."""
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        x, y = (side / 2 for side in self.canvas_size)
        half_width, half_height = self.width / 2, self.height / 2
        offset_x = x - cos * half_width - sin * half_height
        offset_y = y + sin * half_width - cos * half_height
        return cos, sin, offset_x, -sin, cos, offset_y

    def hull(self, outline: Points) -> tuple[float, float, float, float]:
        """Return the xyxy hull of an outline on the canvas, in pixels of the picture. It may reach outside of it."""
        cos, sin = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        centre_x, centre_y = (side / 2 for side in self.canvas_size)
        xs = [cos * (x - centre_x) - sin * (y - centre_y) + self.width / 2 for x, y in outline]
        ys = [sin * (x - centre_x) + cos * (y - centre_y) + self.height / 2 for x, y in outline]
        return min(xs), min(ys), max(xs), max(ys)

    def clip(self, hull: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Return the part of a box inside the picture, rounded to a tenth of a pixel."""
        x1, y1, x2, y2 = hull
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(self.width)), min(y2, float(self.height))
        return round(x1, 1), round(y1, 1), round(x2, 1), round(y2, 1)

    def sees(self, outline: Points) -> bool:
        """Whether at least nine tenths of the area of an outline's hull lie inside the picture."""
        x1, y1, x2, y2 = self.hull(outline)
        left, top, right, bottom = self.clip((x1, y1, x2, y2))
        return max(right - left, 0) * max(bottom - top, 0) >= 0.9 * (x2 - x1) * (y2 - y1)


@dataclass(frozen=True)
class Rack:
    """A rack: its upper left corner and rack unit in pixels of the canvas, the width of its bodies in rack units."""

    left: float
    top: float
    unit: float
    body: float

    def outline(self, x: float, y: float, width: float, height: float) -> Points:
        """Return the corners, on the canvas, of a rectangle given in rack units from the left edge of the bodies."""
        left, top = self.left + (POST + EAR + x) * self.unit, self.top + y * self.unit
        right, bottom = left + width * self.unit, top + height * self.unit
        return [(left, top), (right, top), (right, bottom), (left, bottom)]


@dataclass(frozen=True)
class RackRow:
    """A row for one device, `height` rack units high. `kind` is "" for equipment without annotation."""

    rack: Rack
    top: float
    height: int
    kind: str
    levels: tuple[str, ...]

    @property
    def has_ears(self) -> bool:
        return not {"empty", "missing"} & set(self.levels)

    def outline(self) -> Points:
        """Return the corners of the unit and its ears on the canvas."""
        ear = EAR if self.has_ears else 0
        return self.rack.outline(-ear, self.top, self.rack.body + 2 * ear, self.height)


@dataclass(frozen=True)
class Site:
    """The centre of a screw (`kind` is "screw") or the corner of a label ("label"), in the units of `Rack.outline`."""

    rack: Rack
    kind: str
    x: float
    y: float
    width: float

    def outline(self) -> Points:
        """Return points around the screw or label on the canvas."""
        if self.kind == "label":
            return self.rack.outline(self.x, self.y, self.width, LABEL)
        (left, top), *_ = self.rack.outline(self.x, self.y, 0, 0)
        return ring(left, top, SCREW * self.rack.unit)


@dataclass(frozen=True)
class CabinetPlan:
    """What to draw: every rack and row, and the sites that hold a screw or a label."""

    racks: list[Rack]
    rows: list[RackRow]
    sites: list[Site]


def make_plan(camera: Camera, num_objects: int, random: Random) -> CabinetPlan:
    """Return a plan with exactly `num_objects` annotated objects, each with at least nine tenths of its area in the
    picture.

    Raises InputError if they do not fit.
    """
    num_racks = 2 if num_objects > 12 and random.random() < 0.6 else 1
    while True:
        racks = _place_racks(camera, num_racks, num_objects, random)
        if racks[0].unit / camera.scale < MIN_UNIT:
            raise InputError(
                f"{num_objects} objects do not fit into a synthetic image of {camera.width} x {camera.height} pixels. "
                "Lower data.max_objects, or raise data.width and data.height."
            )
        rows = [row for rack in racks for row in _stack(camera, rack, random)]
        plan = _fill(camera, racks, rows, num_objects, random)
        if plan:
            return plan
        num_racks += 1


def _place_racks(camera: Camera, num_racks: int, num_objects: int, random: Random) -> list[Rack]:
    """Return racks side by side. With fewer objects, the camera is nearer and a device fills more of it."""
    body = random.uniform(5.6, 6.6) if num_objects <= 8 else random.uniform(6.5, 9)
    rack_width = body + 2 * (POST + EAR)
    available = camera.width * random.uniform(0.9, 0.99) / num_racks
    unit = available / rack_width * camera.scale
    left = (camera.canvas_size[0] - num_racks * rack_width * unit) / 2
    left += random.uniform(-0.3, 0.3) * (camera.width * camera.scale - num_racks * rack_width * unit)
    top = camera.margin * camera.scale - random.uniform(0, 1) * unit
    return [Rack(left + index * rack_width * unit, top, unit, body) for index in range(num_racks)]


def _stack(camera: Camera, rack: Rack, random: Random) -> list[RackRow]:
    """Return rows from above the picture to below it, one or two rack units high, still without annotation."""
    rows = []
    top = -math.ceil(rack.top / rack.unit)
    while rack.top + top * rack.unit < camera.canvas_size[1]:
        height = 2 if random.random() < 0.5 else 1
        rows.append(RackRow(rack, top, height, "", ()))
        top += height
    return rows


def _fill(
    camera: Camera, racks: list[Rack], rows: list[RackRow], num_objects: int, random: Random
) -> CabinetPlan | None:
    """Turn some rows into annotated units and choose sites for the other objects; None if there are too few sites."""
    inside = [index for index, row in enumerate(rows) if camera.sees(row.outline())]
    num_units = min(len(inside), max(round(num_objects * random.uniform(0.3, 0.7)), num_objects > 0))
    rows = list(rows)
    for index in random.permutation(inside)[:num_units].tolist():
        rows[index] = _annotate(rows[index], random)
    sites = [site for row in rows if row.has_ears for site in _sites(row, random) if camera.sees(site.outline())]
    if len(sites) < num_objects - num_units:
        return None
    chosen = random.permutation(len(sites))[: num_objects - num_units].tolist()
    return CabinetPlan(racks, rows, [sites[index] for index in chosen])


def _annotate(row: RackRow, random: Random) -> RackRow:
    """Return the row with a kind. Two-unit rows are mostly BBUs, one-unit rows mostly baffles and slots."""
    kinds = ("bbu", "slot", "baffle")
    kind = kinds[random.choice(3, p=(0.75, 0.2, 0.05) if row.height == 2 else (0.25, 0.35, 0.4))]
    if kind == "bbu":
        make = MAKES[random.integers(len(MAKES))]
        return replace(row, kind=kind, levels=(make, "alarm" if random.random() < 0.3 else "running"))
    states = ("installed", "missing") if kind == "baffle" else ("empty", "filled")
    return replace(row, kind=kind, levels=(states[random.integers(2)],))


def _sites(row: RackRow, random: Random) -> list[Site]:
    """Return the sites of a row: a screw per ear and rack unit, and a label in each half of the body."""
    body = row.rack.body
    ears = (-EAR / 2, body + EAR / 2)
    sites = [Site(row.rack, "screw", x, row.top + step + 0.49, 0) for x in ears for step in range(row.height)]
    for half in (0, 1):
        width = random.uniform(1.7, min(2.6, body / 2 - 0.6))
        x = half * body / 2 + random.uniform(0.25, body / 2 - width - 0.25)
        sites.append(Site(row.rack, "label", x, row.top + random.uniform(0.12, row.height - LABEL - 0.12), width))
    return sites
