"""The plot of every loss of a run over its steps."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOWS_PER_RUN = 40
"""The moving average has a window of a run's number of points divided by this; a window below 2 averages nothing."""


def plot_losses(metrics_path: Path, image_path: Path) -> None:
    """Plot each `loss/*` of metrics.jsonl over the steps in axes of its own, with its `eval/loss/*` as dots.

    A run of many steps is shown by its moving average, with the single steps behind it in a lighter tone.
    """
    from matplotlib.figure import Figure

    with metrics_path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    names = dict.fromkeys(name.removeprefix("eval/") for row in rows for name in row)
    names = [name for name in names if name.startswith("loss/")]
    num_columns = min(3, max(1, len(names)))
    num_rows = max(1, math.ceil(len(names) / num_columns))
    width, height = 12, 1.2 + 2.7 * num_rows  # inches
    figure = Figure(figsize=(width, height), dpi=100)
    # Fixed margins in inches: matplotlib's automatic layout measures every text and doubles the time of the plot.
    figure.subplots_adjust(
        left=0.6 / width, right=1 - 0.2 / width, bottom=0.6 / height, top=1 - 0.8 / height, wspace=0.18, hspace=0.5
    )
    all_axes = list(figure.subplots(num_rows, num_columns, squeeze=False, sharex=True).flat)
    for axes, name in zip(all_axes, names, strict=False):
        _plot_loss(axes, name, _series(rows, name), _series(rows, "eval/" + name))
    for axes in all_axes[len(names) :]:
        axes.set_visible(False)
    if names:
        figure.legend(*all_axes[0].get_legend_handles_labels(), loc="upper center", ncols=3, frameon=False)
    figure.savefig(image_path)


def _series(rows: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values. The texts "NaN" and "Infinity" are read as numbers too, and drawn as gaps."""
    points = np.array([(row["step"], float(row[name])) for row in rows if name in row]).reshape(-1, 2)
    return points[:, 0], np.where(np.isfinite(points[:, 1]), points[:, 1], np.nan)


def _plot_loss(
    axes: "Axes", name: str, training: tuple[np.ndarray, np.ndarray], evaluation: tuple[np.ndarray, np.ndarray]
) -> None:
    steps, values = training
    window = len(values) // WINDOWS_PER_RUN
    if window < 2:
        axes.plot(steps, values, color="#2563eb", linewidth=1.6, label="training")
    else:
        means = np.convolve(values, np.ones(window) / window, mode="valid")
        centers = steps[window // 2 :][: len(means)]
        axes.plot(steps, values, color="#2563eb", linewidth=0.8, alpha=0.35, label="training, every step logged")
        axes.plot(centers, means, color="#2563eb", linewidth=1.8, label=f"mean of {window} steps")
    axes.plot(*evaluation, "o", color="#ea580c", markersize=6, label="evaluation")
    axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
    if len(values):
        axes.set_title(f"{values[0]:.3g} \u2192 {values[-1]:.3g}", loc="right", fontsize=10, color="#555555")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10, labelbottom=True)
    axes.set_xlabel("step", fontsize=10)
