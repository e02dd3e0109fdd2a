"""Pictures of a sweep: parallel coordinates and curves. They say the same words as the tables."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bbu_train.compare.cells import RankedCell, short_names, swept_keys
from bbu_train.compare.figures import short
from bbu_train.compare.scales import Scale, linear, scale

DPI = 110
GREY, INK = "#9ca3af", "#374151"
COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#a16207", "#db2777")
MAX_CURVES = len(COLORS)
GOOD_IS_DARK = "viridis_r"
"""Yellow, which is faint on white, for the worst."""


def colors_of(cells: Sequence[RankedCell], mode: str) -> tuple[Any, Normalize]:
    """A colour map in which the best is the darkest, and the span of the means."""
    means = [cell.mean for cell in cells]
    return colormaps[GOOD_IS_DARK if mode == "max" else "viridis"], Normalize(min(means), max(means))


def parallel_coordinates(cells: Sequence[RankedCell], metric: str, mode: str, path: Path) -> None:
    """A line a cell through its value of each swept key to its mean of the metric; the best one is thick."""
    keys = short_names(swept_keys(cells))
    scales = [scale([cell.settings[key] for cell in cells]) for key in keys]
    scales.append(linear([cell.mean for cell in cells]))
    figure = Figure(figsize=(max(7, 2.4 * len(scales)), 5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colormap, span = colors_of(cells, mode)
    for cell in reversed(cells):
        values = [*(cell.settings[key] for key in keys), cell.mean]
        places = [its.places[value] for its, value in zip(scales, values, strict=True)]
        best = cell.rank == 1
        axes.plot(places, color=colormap(span(cell.mean)), linewidth=3.5 if best else 1.4, alpha=1 if best else 0.8)
    for place, its in enumerate(scales):
        _draw_axis(axes, place, its, last=place == len(scales) - 1)
    names = [
        f"{name}\n(log)" if its.kind == "log" else name
        for name, its in zip([*keys.values(), metric], scales, strict=True)
    ]
    axes.set_xticks(range(len(scales)), names, fontsize=10, fontweight="bold")
    axes.tick_params(length=0, pad=12)
    axes.set(xlim=(-0.35, len(scales) - 0.6), ylim=(-0.04, 1.04), yticks=[])
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(span, colormap), ax=axes, pad=0.02, aspect=30)
    bar.set_label(metric, fontsize=10)
    figure.savefig(path)


def _draw_axis(axes: Any, place: int, its: Scale, last: bool) -> None:
    """Labels stand left of their axis, those of the metric right of it, on white so that no line runs through them."""
    axes.axvline(place, color=INK, linewidth=1)
    for height, text in its.ticks:
        axes.plot([place], [height], "_", color=INK, markersize=9)
        side = {"ha": "left", "xytext": (8, 0)} if last else {"ha": "right", "xytext": (-8, 0)}
        ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.annotate(
            text, (place, height), textcoords="offset points", va="center", fontsize=9, color=INK, bbox=ground, **side
        )


def curves(cells: Sequence[RankedCell], metric: str, path: Path) -> None:
    """The metric over the steps: the mean of a cell's seeds, their standard deviation as a band; the best in colour."""
    keys = short_names(swept_keys(cells))
    num_named = min(len(cells), MAX_CURVES)
    figure = Figure(figsize=(11, 5.2 + 0.2 * num_named), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for cell in cells[MAX_CURVES:]:
        steps, means, _ = _over_seeds(cell, metric)
        axes.plot(steps, means, color=GREY, linewidth=0.8, alpha=0.6)
    for cell, color in reversed(list(zip(cells, COLORS, strict=False))):
        steps, means, spreads = _over_seeds(cell, metric)
        label = ", ".join(f"{name} {short(cell.settings[key], 40)}" for key, name in keys.items())
        axes.fill_between(steps, means - spreads, means + spreads, color=color, alpha=0.13, linewidth=0)
        marker = "o" if len(steps) <= 40 else None
        label = f"{cell.rank}.  {label or 'all runs'}  (n = {len(cell.runs)})"
        axes.plot(steps, means, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=label)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower left", frameon=False, fontsize=9)
    if len(cells) > MAX_CURVES:
        axes.set_title(f"the best {MAX_CURVES} of {len(cells)} cells in colour", loc="right", fontsize=10, color=INK)
    axes.set_title(metric, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("step", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _over_seeds(cell: RankedCell, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, means and standard deviations (0 where one run has the step), each run smoothed if it has many steps."""
    by_step: dict[int, list[float]] = {}
    for scored in cell.runs:
        points = [point for point in scored.run.series[metric] if math.isfinite(point[1])]
        for step, value in _smoothed(points):
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    means = [float(np.mean(by_step[step])) for step in steps]
    spreads = [float(np.std(by_step[step], ddof=1)) if len(by_step[step]) > 1 else 0.0 for step in steps]
    return np.array(steps), np.array(means), np.array(spreads)


def _smoothed(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean of a fortieth of the steps around each step, as in a run's losses.png."""
    window = len(points) // 40
    if window < 2:
        return points
    means = np.convolve([value for _, value in points], np.ones(window) / window, mode="valid").tolist()
    return [(step, mean) for (step, _), mean in zip(points[window // 2 :], means, strict=False)]
