"""Curves over the steps of a run: reading, smoothing and drawing them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (
    *("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#06b6d4"),
    *("#a16207", "#ec4899", "#65a30d", "#64748b", "#1e3a8a", "#facc15"),
)
"""Colours of lines on white, the most different first. Further lines take them again, dashed."""
BLACK, GREY = "#111827", "#555555"
WINDOWS_PER_RUN = 40
"""The window of a moving average is the number of points divided by this. There is no average below two points."""
MAX_MARKED = 40  # points: up to so many each have a marker, so that single points show
LOG_RATIO = 30  # largest over smallest value, above which an axis is logarithmic


class Series(NamedTuple):
    """The values of a metric at some steps. Values that are not finite become NaN: gaps in the line."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def num_gaps(self) -> int:
        return int(np.isnan(self.values).sum())

    def smooth(self) -> "Series":
        """Return the moving average of the finite values, at the middle of each window; a short series as it is."""
        window = len(self.values) // WINDOWS_PER_RUN
        if window < 2:
            return self
        is_finite, ones = np.isfinite(self.values), np.ones(window)
        counts = np.convolve(is_finite, ones, mode="valid")
        sums = np.convolve(np.where(is_finite, self.values, 0), ones, mode="valid")
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        return Series(self.steps[window // 2 :][: len(means)], means)

    def last(self) -> float:
        """Return the last finite value; NaN if there is none."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-1]) if len(finite) else math.nan


def read_series(metrics_path: Path) -> dict[str, Series]:
    """Return each metric of metrics.jsonl. The texts "NaN" and "Infinity" are read as numbers too."""
    points: dict[str, list[tuple[float, float]]] = {}
    with metrics_path.open(encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(map(json.loads, file))
    for row in rows:
        for name, value in row.items():
            points.setdefault(name, []).append((row["step"], float(value)))
    return {name: as_series(pairs) for name, pairs in points.items()}


def as_series(points: Sequence[tuple[float, float]]) -> Series:
    array = np.array(points, dtype=float).reshape(-1, 2)
    return Series(array[:, 0], np.where(np.isfinite(array[:, 1]), array[:, 1], np.nan))


def draw_line(axes: "Axes", series: Series, number: int, label: str, color: str | None = None) -> None:
    """Draw a series as the `number`-th line of the axes."""
    axes.plot(
        *series,
        color=color or COLORS[number % len(COLORS)],
        linestyle="-" if number < len(COLORS) else "--",
        linewidth=1.8,
        marker="o" if len(series.steps) <= MAX_MARKED else None,
        markersize=4,
        label=label,
    )


def finish(axes: "Axes", title: str) -> None:
    """Style the axes once all lines are drawn. The scale is logarithmic if their values differ by decades."""
    from matplotlib.ticker import MaxNLocator

    steps = np.concatenate([np.zeros(0), *(line.get_xdata() for line in axes.lines)])
    values = np.concatenate([np.zeros(0), *(line.get_ydata() for line in axes.lines)])
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if len(positive) and positive.max() > LOG_RATIO * positive.min() and finite.min() >= 0:
        axes.set_yscale("log")  # a rate of 0, at the start of a warm-up, is a gap
    if not len(finite):
        text = "no value is finite" if len(values) else "no step was logged"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)
        axes.set_yticks([])
    if len(steps) and (not len(finite) or steps.min() == steps.max()):
        axes.set_xlim(steps.min() - 0.5, steps.max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=20)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    axes.set_xlabel("step", fontsize=10)


def legend_beside(axes: "Axes", title: str) -> None:
    """Put the legend to the right of the axes, where it covers no line."""
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9.5, title=title)
    legend.get_title().set_fontsize(9.5)
    legend.get_title().set_color(GREY)
    legend._legend_box.align = "left"
