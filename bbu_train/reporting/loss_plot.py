"""The plot of every loss of a run over its steps."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bbu_train.reporting.curves import BLACK, COLORS, GREY, Series, draw_line, finish, legend_beside, read_series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOTAL = "loss/total"
MEANINGS = {
    TOTAL: "what training minimises: the sum of weight x loss",
    "loss/teacher_lm": "cross entropy per answer token of teachers",
    "loss/student_lm": "cross entropy per answer token of students",
    "loss/caption": "cross entropy per token of a description",
    "bbox_l1": "L1 distance of matched boxes, per object",
    "bbox_giou": "1 - GIoU of matched boxes, per object",
    "objectness": "object or not, summed over a picture",
    "loss/denoising_objectness": "noised true boxes: object or not, per object",
}
"""The meaning of each loss, by its name or by the end of its name."""
PARTS = {"loss/aux_": "earlier layers: ", "loss/denoising_": "noised true boxes: ", "loss/dense_": "image tokens: "}
"""What a loss is computed from, by the beginning of its name; any other loss uses the queries of the last layer."""
WIDTH, LEFT, LEGEND, TOP_HEIGHT, PANEL_HEIGHT, NUM_COLUMNS = 14, 0.7, 4.7, 4.3, 2.9, 3  # inches, except the last


def plot_losses(metrics_path: Path, image_path: Path, weights: Mapping[str, float]) -> None:
    """Plot the parts of the total in one diagram, then each `loss/*` of metrics.jsonl in its own.

    `weights` has the weight of each loss in the total, by its name without "loss/". Runs of many steps
    are drawn as moving averages. The diagram of a single loss also shows each step in a lighter tone, and the values of
    `eval/loss/*` as dots. Values that are not finite leave a gap and are counted.
    """
    from matplotlib.figure import Figure

    series = read_series(metrics_path)
    names = dict.fromkeys(name.removeprefix("eval/") for name in series)
    names = sorted((name for name in names if name.startswith("loss/")), key=lambda name: name != TOTAL)
    num_rows = math.ceil(len(names) / NUM_COLUMNS)
    height = TOP_HEIGHT + PANEL_HEIGHT * num_rows
    figure = Figure(figsize=(WIDTH, height), dpi=100)
    # Fixed places in inches: matplotlib's automatic layout measures every text and doubles the time of the plot.
    whole = figure.add_axes(
        (LEFT / WIDTH, 1 - (TOP_HEIGHT - 0.7) / height, 1 - (LEFT + LEGEND) / WIDTH, (TOP_HEIGHT - 1.2) / height)
    )
    _plot_contributions(whole, series, weights)
    column_width = (WIDTH - LEFT + 0.4) / NUM_COLUMNS
    for number, name in enumerate(names):
        row, column = divmod(number, NUM_COLUMNS)
        bottom = height - TOP_HEIGHT - (row + 1) * PANEL_HEIGHT + 0.6
        left, size = LEFT + column * column_width, (column_width - 0.6, PANEL_HEIGHT - 1.2)
        axes = figure.add_axes((left / WIDTH, bottom / height, size[0] / WIDTH, size[1] / height))
        _plot_loss(axes, name, series, weights.get(name.removeprefix("loss/")))
    figure.savefig(image_path)


def _plot_contributions(axes: "Axes", series: Mapping[str, Series], weights: Mapping[str, float]) -> None:
    """Plot weight times loss of each component, the largest first, and their sum."""
    parts = {}
    for name, weight in weights.items():
        if weight and (loss := series.get(f"loss/{name}")) is not None:
            parts[f"{weight:g} x loss/{name}"] = Series(loss.steps, weight * loss.values).smooth()
    ends = {name: part.last() for name, part in parts.items()}
    whole = np.nansum(list(ends.values()))
    if TOTAL in series:
        draw_line(axes, total := series[TOTAL].smooth(), 0, f"{total.last():.3g}  {TOTAL}", BLACK)
    for number, name in enumerate(sorted(parts, key=lambda name: -np.nan_to_num(ends[name]))):
        share = f"{ends[name] / whole:.0%}" if whole and math.isfinite(ends[name]) else "-"
        draw_line(axes, parts[name], number, f"{ends[name]:.3g}  {share}  {name}")
    finish(axes, "What the total is made of: weight x loss of each component")
    if axes.lines:
        legend_beside(axes, "at the end, share of the total, component")


def _plot_loss(axes: "Axes", name: str, series: Mapping[str, Series], weight: float | None) -> None:
    """Plot one loss without its weight, with its evaluations."""
    notes = [meaning(name), "" if weight is None else f"weight {weight:g}"]
    if (training := series.get(name)) is not None:
        smooth = training.smooth()
        if smooth is not training:
            axes.plot(*training, color=COLORS[0], linewidth=0.8, alpha=0.35)
        draw_line(axes, smooth, 0, "training")
        gaps = f" ({training.num_gaps} not finite)" if training.num_gaps else ""
        values = f"{training.values[0]:.3g} to {training.values[-1]:.3g}{gaps}"
        axes.set_title(values, loc="right", fontsize=9.5, color=GREY, pad=20)
    if (evaluation := series.get("eval/" + name)) is not None:
        axes.plot(*evaluation, "o", color=COLORS[1], markersize=6, label="evaluation")
    finish(axes, name)
    axes.text(0, 1.03, "; ".join(filter(None, notes)), transform=axes.transAxes, fontsize=8.5, color=GREY)
    if name == TOTAL:
        axes.legend(loc="upper right", fontsize=9, framealpha=0.7)


def meaning(name: str) -> str:
    """Return what a loss is, in a few words; "" if it is not known."""
    if name in MEANINGS:
        return MEANINGS[name]
    prefix = next((prefix for prefix in PARTS if name.startswith(prefix)), "loss/")
    term = MEANINGS.get(name.removeprefix(prefix), "")
    return term and PARTS.get(prefix, "") + term
