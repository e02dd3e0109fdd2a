"""Plots of the candidates of a sweep: parallel coordinates, and the metric over the steps."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from bbu_train.compare.axis_scales import AxisScale, metric_scale, setting_scale
from bbu_train.compare.candidates import Candidate, short_names, swept_keys
from bbu_train.compare.formatting import abbreviate
from bbu_train.reporting.curves import COLORS, MAX_MARKED, as_series

DPI = 110
GREY, DARK_GREY = "#9ca3af", "#374151"
MAX_COLORED = len(COLORS)


def color_scale(candidates: Sequence[Candidate], mode: str) -> tuple[Colormap, Normalize]:
    """Return a colour map and its range. The best candidate is darkest, and the worst is a faint yellow."""
    means = [candidate.mean for candidate in candidates]
    return colormaps["viridis_r" if mode == "max" else "viridis"], Normalize(min(means), max(means))


def plot_parallel_coordinates(candidates: Sequence[Candidate], metric: str, mode: str, path: Path) -> None:
    """Plot one line per candidate, through its value of each swept key to its mean metric. The best line is thick."""
    keys = short_names(swept_keys(candidates))
    scales = [setting_scale([candidate.settings[key] for candidate in candidates]) for key in keys]
    scales.append(metric_scale([candidate.mean for candidate in candidates]))
    figure = Figure(figsize=(max(7, 2.4 * len(scales)), 5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colormap, normalize = color_scale(candidates, mode)
    for candidate in reversed(candidates):
        values = [*(candidate.settings[key] for key in keys), candidate.mean]
        heights = [scale.positions[value] for scale, value in zip(scales, values, strict=True)]
        is_best = candidate.rank == 1
        color = colormap(normalize(candidate.mean))
        axes.plot(heights, color=color, linewidth=3.5 if is_best else 1.4, alpha=1 if is_best else 0.8)
    for x, scale in enumerate(scales):
        _draw_axis(axes, x, scale, is_last=x == len(scales) - 1)
    names = [
        f"{name}\n(log)" if scale.kind == "log" else name
        for name, scale in zip([*keys.values(), metric], scales, strict=True)
    ]
    axes.set_xticks(range(len(scales)), names, fontsize=10, fontweight="bold")
    axes.tick_params(length=0, pad=12)
    axes.set(xlim=(-0.35, len(scales) - 0.6), ylim=(-0.04, 1.04), yticks=[])
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(normalize, colormap), ax=axes, pad=0.02, aspect=30)
    bar.set_label(metric, fontsize=10)
    figure.savefig(path)


def _draw_axis(axes: Axes, x: int, scale: AxisScale, is_last: bool) -> None:
    """Draw a vertical axis, labelled on its left, the last one on its right. A white box keeps lines off the labels."""
    axes.axvline(x, color=DARK_GREY, linewidth=1)
    for height, label in scale.ticks:
        axes.plot([x], [height], "_", color=DARK_GREY, markersize=9)
        side = {"ha": "left", "xytext": (8, 0)} if is_last else {"ha": "right", "xytext": (-8, 0)}
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.annotate(
            label, (x, height), textcoords="offset points", va="center", fontsize=9, color=DARK_GREY, bbox=box, **side
        )


def plot_curves(candidates: Sequence[Candidate], metric: str, path: Path) -> None:
    """Plot the metric over the steps: each candidate's mean over seeds, and one standard deviation as a band.

    The best candidates are in colour and in the legend, the others grey.
    """
    keys = short_names(swept_keys(candidates))
    num_colored = min(len(candidates), MAX_COLORED)
    figure = Figure(figsize=(11, 5.2 + 0.2 * num_colored), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for candidate in candidates[MAX_COLORED:]:
        steps, means, _ = _over_seeds(candidate, metric)
        axes.plot(steps, means, color=GREY, linewidth=0.8, alpha=0.6)
    for candidate, color in reversed(list(zip(candidates, COLORS, strict=False))):
        steps, means, stds = _over_seeds(candidate, metric)
        settings = ", ".join(f"{name} {abbreviate(candidate.settings[key], 40)}" for key, name in keys.items())
        axes.fill_between(steps, means - stds, means + stds, color=color, alpha=0.13, linewidth=0)
        marker = "o" if len(steps) <= MAX_MARKED else None
        label = f"{candidate.rank}.  {settings or 'all runs'}  (n = {len(candidate.runs)})"
        axes.plot(steps, means, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=label)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower left", frameon=False, fontsize=9)
    if len(candidates) > MAX_COLORED:
        title = f"the best {MAX_COLORED} of {len(candidates)} candidates in colour"
        axes.set_title(title, loc="right", fontsize=10, color=DARK_GREY)
    axes.set_title(metric, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("step", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _over_seeds(candidate: Candidate, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, means and standard deviations over a candidate's runs; 0 where only one run has the step."""
    by_step: dict[float, list[float]] = {}
    for run in candidate.runs:
        points = [point for point in run.run.series[metric] if math.isfinite(point[1])]
        for step, value in zip(*as_series(points).smooth(), strict=True):
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    means = [float(np.mean(by_step[step])) for step in steps]
    stds = [float(np.std(by_step[step], ddof=1)) if len(by_step[step]) > 1 else 0.0 for step in steps]
    return np.array(steps), np.array(means), np.array(stds)
