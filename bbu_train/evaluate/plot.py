"""The evaluation table as one figure: each metric over the number of teachers, and AP50 of every class."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bbu_train.evaluate.measure import EvaluationRow
from bbu_train.evaluate.table import EvaluationTable
from bbu_train.images.fonts import use_in_plots

COLORS = {"head": "#2563eb", "generated": "#ea580c"}
# Points from a marker up to its number; below the marker for one route, so that the numbers do not overlap.
LABEL_OFFSETS = {"head": 6, "generated": -13}
PANELS = {
    "ap": "AP",
    "ap50": "AP50",
    "f1": "F1 at IoU 0.5",
    "recall_100": "AR, 100 boxes per picture",
    "description/exact": "exactly correct descriptions",
    "malformed": "malformed answers",
    "student_lm": "loss of the true answer, nats per token",
    "seconds": "seconds per picture",
}
UNBOUNDED = ("student_lm", "seconds")  # all other metrics are shares from 0 to 1
NUM_COLUMNS = 4
MAX_CLASSES = 30


def draw(table: EvaluationTable, path: Path) -> None:
    """Draw one panel per metric, with a line for each route, and below them AP50 by class; save the figure."""
    classes = [name for name in table.metric_names if name.startswith("ap50/")][:MAX_CLASSES]
    use_in_plots(classes)
    num_rows = math.ceil(len(PANELS) / NUM_COLUMNS)
    class_height = 0.5 + 0.42 * len(table.rows) + 0.8
    heights = [2.7 * num_rows, *([class_height] if classes else [])]
    figure = Figure(figsize=(14, sum(heights) + 0.7), dpi=110, layout="constrained")
    figure.suptitle(f"step {table.step}, {table.split}: {table.rows[0].num_pictures} pictures", x=0.01, ha="left")
    routes = {row.route: COLORS[row.route] for row in table.rows}
    lines = [Line2D([], [], marker="o", color=color, label=route) for route, color in routes.items()]
    figure.legend(handles=lines, loc="upper right", ncols=2, frameon=False)
    parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    for axes, (name, title) in zip(parts[0].subplots(num_rows, NUM_COLUMNS).flat, PANELS.items(), strict=True):
        for route in routes:
            _draw_line(axes, [row for row in table.rows if row.route == route and name in row.metrics], name)
        _style(axes, title, sorted({row.num_teachers for row in table.rows}), name not in UNBOUNDED)
    if classes:
        _draw_classes(parts[1].subplots(), table, classes)
    figure.savefig(path)


def _draw_line(axes: Axes, rows: list[EvaluationRow], name: str) -> None:
    """Draw a metric of one route over the number of teachers; nothing if no row has it."""
    for row in rows:
        point, offset = (row.num_teachers, row.metrics[name]), LABEL_OFFSETS[row.route]
        style = {"xytext": (0, offset), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(f"{point[1]:.2f}", point, color=COLORS[row.route], **style)
    if rows:
        points = [(row.num_teachers, row.metrics[name]) for row in rows]
        axes.plot(*zip(*points, strict=True), "o-", color=COLORS[rows[0].route], linewidth=1.8)


def _style(axes: Axes, title: str, teacher_counts: list[int], is_share: bool) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xticks(teacher_counts)
    axes.margins(x=0.15, y=0.25)
    axes.set_xlabel("teachers", fontsize=9)
    if is_share:
        axes.set_ylim(-0.12, 1.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_classes(axes: Axes, table: EvaluationTable, classes: list[str]) -> None:
    """Draw AP50 as a heat map: a row for each route and number of teachers, a column for each class."""
    values = np.array([[row.metrics.get(name, math.nan) for name in classes] for row in table.rows])
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        color = "white" if values[row, column] > 0.6 else "#1f2937"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8, color=color)
    slant = {"rotation": 30, "ha": "right"} if len(classes) > 10 else {}
    axes.set_xticks(range(len(classes)), [name.removeprefix("ap50/") for name in classes], fontsize=9, **slant)
    axes.set_yticks(range(len(table.rows)), [f"{row.route}, teachers {row.num_teachers}" for row in table.rows])
    axes.set_title("AP50 by class", loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
