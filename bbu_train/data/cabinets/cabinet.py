"""Synthetic images of telecom equipment cabinets, each a function of its key, with a box for every annotated object."""

import math

import numpy as np
from PIL import Image, ImageDraw

from bbu_train.data.cabinets import parts
from bbu_train.data.cabinets.baseband_units import draw_bbu
from bbu_train.data.cabinets.pen import Pen, shade
from bbu_train.data.cabinets.plan import (
    EAR,
    LABEL,
    POST,
    SCREW,
    CabinetPlan,
    Camera,
    Points,
    Rack,
    RackRow,
    Site,
    make_plan,
)
from bbu_train.data.cabinets.words import describe, label_text
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object

Random = np.random.Generator
Outlines = list[tuple[Points, str]]

MAX_ANGLE = math.radians(2.5)
EMPTY_SHARE = 1 / 16  # of the images, if images without objects are allowed
MAX_COVER = 0.2  # share of an object's box that cables may hide


def draw(
    key: tuple[int | str, ...], *, width: int, height: int, min_objects: int, max_objects: int, language: str
) -> tuple[Image.Image, tuple[Object, ...]]:
    """Return an image of `width` x `height` pixels and its `min_objects` to `max_objects` objects.

    Equal keys give equal images. Boxes are axis-aligned hulls of the rotated objects, clipped to the image. With
    `min_objects` 0, about one image in sixteen has no objects. Raises InputError if so many objects do not fit.
    """
    random = generator("cabinet", *key)
    num_objects = int(random.integers(max(min_objects, 1), max_objects + 1)) if max_objects else 0
    if min_objects == 0 and random.random() < EMPTY_SHARE:
        num_objects = 0
    camera = _camera(width, height, random)
    plan = make_plan(camera, num_objects, random)
    canvas = Image.new("RGB", camera.canvas_size)
    canvas_draw = ImageDraw.Draw(canvas, "RGBA")
    _paint_wall(canvas_draw, camera, random)
    _paint_racks(canvas_draw, camera, plan, random)
    outlines = _paint_rows(canvas_draw, plan.rows, language, random)
    outlines += [_paint_site(canvas_draw, site, language, random) for site in plan.sites]
    _paint_cables(canvas_draw, camera, plan, [outline for outline, _ in outlines], random)
    picture = canvas.transform(
        (width, height), Image.Transform.AFFINE, camera.coefficients(), Image.Resampling.BILINEAR
    )
    objects = tuple(Object(camera.clip(camera.hull(outline)), text) for outline, text in outlines)
    return light(picture, random), objects


def _camera(width: int, height: int, random: Random) -> Camera:
    margin = math.ceil(max(width, height) * math.sin(MAX_ANGLE) / 2) + 2
    scale = 2 if width * height < 500_000 else 1.5
    return Camera(width, height, scale, margin, random.uniform(-MAX_ANGLE, MAX_ANGLE))


def _paint_wall(canvas_draw: ImageDraw.ImageDraw, camera: Camera, random: Random) -> None:
    """Paint the wall beside and behind the cabinet."""
    wall = shade((168, 172, 174), random.uniform(0.6, 1.1))
    width, height = camera.canvas_size
    Pen(canvas_draw, 0, 0, 1).gradient(0, 0, width, height, wall, contrast=0.12)


def _paint_racks(canvas_draw: ImageDraw.ImageDraw, camera: Camera, plan: CabinetPlan, random: Random) -> None:
    """Paint posts, the dark inside, rails, and bundles of cables along the posts."""
    post = ((48, 50, 54), (196, 198, 194), (84, 90, 98))[random.integers(3)]
    rail = shade((150, 154, 156), random.uniform(0.8, 1.1))
    for rack in plan.racks:
        height = camera.canvas_size[1] / rack.unit
        pen = Pen(canvas_draw, rack.left, 0, rack.unit)
        inner = rack.body + 2 * EAR
        for x in (0, POST + inner):
            pen.rectangle(x, 0, POST, height, post)
            pen.rectangle(x, 0, 0.1, height, shade(post, 1.3))
            pen.rectangle(x + POST - 0.1, 0, 0.1, height, shade(post, 0.5))
            _paint_bundle(pen.at(x, 0), height, random)
        pen.rectangle(POST, 0, inner, height, (20, 22, 24))
        parts.draw_rails(pen.at(0, rack.top / rack.unit % 1 - 1), (POST, POST + EAR + rack.body), EAR, height + 1, rail)


def _paint_bundle(pen: Pen, height: float, random: Random) -> None:
    for _ in range(random.integers(0, 4)):
        color = parts.CABLES[random.integers(len(parts.CABLES))]
        x, phase = random.uniform(0.15, POST - 0.15), random.uniform(0, 6)
        ys = np.linspace(0, height, 14).tolist()
        points = [(x + 0.05 * math.sin(y + phase), y) for y in ys]
        pen.line(points, 0.15, shade(color, 0.55))
        pen.line(points, 0.1, color)


def _paint_rows(canvas_draw: ImageDraw.ImageDraw, rows: list[RackRow], language: str, random: Random) -> Outlines:
    outlines = []
    ear = shade((176, 179, 180), random.uniform(0.75, 1.1))
    for row in rows:
        pen = _pen(canvas_draw, row.rack).at(0, row.top)
        _paint_unit(pen, row, random)
        if row.has_ears:
            for x in (-EAR, row.rack.body):
                parts.draw_ear(pen.at(x, 0), EAR, row.height - 0.02, ear)
        if row.kind:
            outlines.append((row.outline(), describe(language, row.kind, *row.levels)))
    return outlines


def _paint_unit(pen: Pen, row: RackRow, random: Random) -> None:
    width, height = row.rack.body, row.height - 0.02
    match row.kind, row.levels:
        case "bbu", (make, state):
            draw_bbu(pen, make, width, height, alarm=state == "alarm", random=random)
        case "baffle", (state,):
            parts.draw_baffle(pen, state == "installed", width, height)
        case "slot", ("empty",):
            parts.draw_opening(pen, width, height)
        case "slot", _:
            color = ((186, 188, 186), (128, 132, 138))[random.integers(2)]
            parts.draw_filled_slot(pen, width, height, color)
        case _:
            parts.draw_neutral(pen, width, height, random)


def _paint_site(canvas_draw: ImageDraw.ImageDraw, site: Site, language: str, random: Random) -> tuple[Points, str]:
    pen = _pen(canvas_draw, site.rack).at(site.x, site.y)
    if site.kind == "screw":
        is_correct = random.random() < 0.6
        fittings = ("correct", "seated") if is_correct else ("no mark", "loose", "tilted")
        fitting = fittings[random.integers(len(fittings))]
        parts.draw_screw(pen, fitting, SCREW, random.uniform(0, 2 * math.pi))
        levels = (fitting,) if fitting == "correct" else ("correct" if is_correct else "wrong", fitting)
        return site.outline(), describe(language, "screw", *levels)
    paper = ((244, 244, 238), (250, 226, 80), (200, 232, 205))[random.integers(3)]
    text = label_text(language, random) if random.random() < 0.75 else None
    parts.draw_label(pen, text, site.width, LABEL, paper=paper, random=random)
    return site.outline(), describe(language, "label", *(("readable", text) if text else ("unreadable",)))


def _paint_cables(
    canvas_draw: ImageDraw.ImageDraw, camera: Camera, plan: CabinetPlan, outlines: list[Points], random: Random
) -> None:
    """Paint cables from the fronts of units to a post, over everything, except those that would hide an object."""
    reduction = 4 * camera.scale
    cover = Image.new("L", tuple(round(side / reduction) for side in camera.canvas_size))
    for row in plan.rows:
        if row.kind not in ("bbu", ""):
            continue
        for _ in range(random.integers(0, 3 if row.kind else 2)):
            color = parts.CABLES[random.integers(len(parts.CABLES))]
            points, width = _cable_path(row, random), random.uniform(0.09, 0.17)
            candidate = cover.copy()
            left, top = row.rack.outline(0, 0, 0, 0)[0]
            small = Pen(ImageDraw.Draw(candidate), left / reduction, top / reduction, row.rack.unit / reduction)
            small.line(points, width, 255)
            small.disc(*points[0], 0.45, 255)  # keeps the socket away from labels and screws
            if all(_covered_share(candidate, outline, reduction) <= MAX_COVER for outline in outlines):
                cover = candidate
                parts.draw_cable(_pen(canvas_draw, row.rack), points, width, color)


def _cable_path(row: RackRow, random: Random) -> Points:
    """Return a cubic Bezier curve in rack units: from a socket to a post, then down out of the picture."""
    body = row.rack.body
    start_x, start_y = random.uniform(0.8, body - 0.8), row.top + random.uniform(0.3, 0.8) * row.height
    goes_right = random.random() < start_x / body
    end_x = body + EAR + POST * random.uniform(0.2, 0.8) if goes_right else -EAR - POST * random.uniform(0.2, 0.8)
    drop = random.uniform(0.8, 2.5)
    corners = np.array(
        [(start_x, start_y), (start_x, start_y + drop), (end_x, start_y + drop * 0.4), (end_x, start_y + drop + 4)]
    )
    t = np.linspace(0, 1, 28)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return [*map(tuple, (weights @ corners).tolist()), (end_x, start_y + 100)]


def _covered_share(cover: Image.Image, outline: Points, reduction: float) -> float:
    """Return the share of an outline's box that cables hide."""
    xs, ys = zip(*outline, strict=True)
    left, top = math.floor(min(xs) / reduction), math.floor(min(ys) / reduction)
    box = left, top, max(left + 1, math.ceil(max(xs) / reduction)), max(top + 1, math.ceil(max(ys) / reduction))
    return float(np.asarray(cover.crop(box)).mean()) / 255


def light(picture: Image.Image, random: Random) -> Image.Image:
    """Apply a gradient across the picture, the spot of a lamp, a colour cast, and the sensor's noise."""
    width, height = picture.size
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope, exposure = random.uniform(-0.16, 0.16, 2), random.uniform(0.78, 1.05)
    light = np.float32(exposure) + np.float32(slope[0]) * x + np.float32(slope[1]) * y
    lamp_x, lamp_y = random.uniform(-0.8, 0.8, 2).astype(np.float32)
    light += np.float32(random.uniform(0, 0.3)) * np.exp(-3 * (x - lamp_x) ** 2) * np.exp(-3 * (y - lamp_y) ** 2)
    cast = random.uniform(0.95, 1.05, 3).astype(np.float32)
    pixels = np.asarray(picture, dtype=np.float32) * light[..., None]
    pixels *= cast
    sigma = np.float32(random.uniform(1.5, 5))
    pixels += sigma * random.standard_normal((height, width, 1), dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def _pen(canvas_draw: ImageDraw.ImageDraw, rack: Rack) -> Pen:
    """Return a pen in rack units from the left edge of the rack's bodies."""
    return Pen(canvas_draw, rack.left, rack.top, rack.unit).at(POST + EAR, 0)
