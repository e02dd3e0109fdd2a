"""The table as one picture: what matters over the number of teachers, a line a route, and every class."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bbu_train.evaluate.measure import EvaluationRow
from bbu_train.evaluate.table import Scores
from bbu_train.images.fonts import use_in_plots

COLORS = {"head": "#2563eb", "generated": "#ea580c"}
SHIFTS = {"head": 6, "generated": -13}  # points from a value's dot to its number
PANELS = {
    **{"ap": "AP", "ap50": "AP50", "f1": "F1 at IoU 0.5", "recall_100": "average recall, 100 a picture"},
    **{"description/exact": "descriptions exactly right", "malformed": "malformed answers"},
    **{"student_lm": "loss of the true answer, nats a token", "seconds": "seconds a picture"},
}
FREE = ("student_lm", "seconds")  # the others are shares, from 0 to 1
COLUMNS = 4
MAX_CLASSES = 30


def draw(scores: Scores, path: Path) -> None:
    classes = [name for name in scores.names if name.startswith("ap50/")][:MAX_CLASSES]
    use_in_plots(classes)
    num_rows = math.ceil(len(PANELS) / COLUMNS)
    height_of_map = 0.5 + 0.42 * len(scores.rows) + 0.8
    heights = [2.7 * num_rows, *([height_of_map] if classes else [])]
    figure = Figure(figsize=(14, sum(heights) + 0.7), dpi=110, layout="constrained")
    figure.suptitle(f"step {scores.step}, {scores.split}: {scores.rows[0].num_pictures} pictures", x=0.01, ha="left")
    routes = {row.route: COLORS[row.route] for row in scores.rows}
    lines = [Line2D([], [], marker="o", color=color, label=route) for route, color in routes.items()]
    figure.legend(handles=lines, loc="upper right", ncols=2, frameon=False)
    parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    for axes, (name, title) in zip(parts[0].subplots(num_rows, COLUMNS).flat, PANELS.items(), strict=True):
        for route in routes:
            _draw_line(axes, [row for row in scores.rows if row.route == route and name in row.metrics], name)
        _finish(axes, title, sorted({row.num_teachers for row in scores.rows}), name not in FREE)
    if classes:
        _map(parts[1].subplots(), scores, classes)
    figure.savefig(path)


def _draw_line(axes, rows: list[EvaluationRow], name: str) -> None:
    """A metric of one route over the number of teachers; no line where it is not defined."""
    for row in rows:
        point, shift = (row.num_teachers, row.metrics[name]), SHIFTS[row.route]
        below = {"xytext": (0, shift), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(f"{point[1]:.2f}", point, color=COLORS[row.route], **below)
    if rows:
        points = [(row.num_teachers, row.metrics[name]) for row in rows]
        axes.plot(*zip(*points, strict=True), "o-", color=COLORS[rows[0].route], linewidth=1.8)


def _finish(axes, title: str, numbers: list[int], is_share: bool) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xticks(numbers)
    axes.margins(x=0.15, y=0.25)
    axes.set_xlabel("teachers", fontsize=9)
    if is_share:
        axes.set_ylim(-0.12, 1.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _map(axes, scores: Scores, classes: list[str]) -> None:
    """AP50 of each class, dark where it is good."""
    values = np.array([[row.metrics.get(name, math.nan) for name in classes] for row in scores.rows])
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        color = "white" if values[row, column] > 0.6 else "#1f2937"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8, color=color)
    slant = {"rotation": 30, "ha": "right"} if len(classes) > 10 else {}
    axes.set_xticks(range(len(classes)), [name.removeprefix("ap50/") for name in classes], fontsize=9, **slant)
    axes.set_yticks(range(len(scores.rows)), [f"{row.route}, teachers {row.num_teachers}" for row in scores.rows])
    axes.set_title("AP50 by class", loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
