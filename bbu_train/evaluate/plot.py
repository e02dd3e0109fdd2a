"""The table as one picture: what matters over the number of teachers, a line a route, and every class."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bbu_train.evaluate.table import Scores
from bbu_train.fonts import use_in_plots

COLORS = {"head": "#2563eb", "written": "#ea580c"}
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
    parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    for axes, (name, title) in zip(parts[0].subplots(num_rows, COLUMNS).flat, PANELS.items(), strict=True):
        _over_teachers(axes, scores, name, title)
    if classes:
        _map(parts[1].subplots(), scores, classes)
    figure.savefig(path)


def _over_teachers(axes, scores: Scores, name: str, title: str) -> None:
    for route in dict.fromkeys(row.route for row in scores.rows):
        rows = [row for row in scores.rows if row.route == route and name in row.metrics]
        points = [(row.num_teachers, row.metrics[name]) for row in rows]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), "o-", color=COLORS[route], label=route, linewidth=1.8)
        above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        for point in points:
            axes.annotate(f"{point[1]:.3g}", point, **above)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xticks(sorted({row.num_teachers for row in scores.rows}))
    axes.margins(x=0.15, y=0.25)
    axes.set_xlabel("teachers", fontsize=9)
    if name not in FREE:
        axes.set_ylim(-0.03, 1.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


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
