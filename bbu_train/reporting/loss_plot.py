"""Plots every loss of a run over its steps."""

import json
import math
from pathlib import Path

import numpy as np


def plot_losses(metrics_path: Path, image_path: Path) -> None:
    """Every `loss/*` of metrics.jsonl over the steps, a panel each, with its `eval/loss/*` as dots.

    Many steps are shown by their moving average, with the steps themselves behind it in a lighter tone.
    """
    from matplotlib.figure import Figure

    with metrics_path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    names = dict.fromkeys(name.removeprefix("eval/") for row in rows for name in row)
    names = [name for name in names if name.startswith("loss/")]
    num_columns = min(3, max(1, len(names)))
    num_rows = max(1, math.ceil(len(names) / num_columns))
    figure = Figure(figsize=(12, 0.7 + 2.7 * num_rows), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False, sharex=True).flat)
    for panel, name in zip(panels, names, strict=False):
        _draw_loss(panel, name, _series(rows, name), _series(rows, "eval/" + name))
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    if names:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(image_path)


def _series(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; `float` reads "NaN" and "Infinity" too, which are drawn as gaps."""
    points = np.array([(row["step"], float(row[name])) for row in rows if name in row]).reshape(-1, 2)
    return points[:, 0], np.where(np.isfinite(points[:, 1]), points[:, 1], np.nan)


def _draw_loss(panel, name: str, training: tuple[np.ndarray, np.ndarray], evaluation: tuple[np.ndarray, np.ndarray]):
    steps, values = training
    window = len(values) // 40
    if window < 2:
        panel.plot(steps, values, color="#2563eb", linewidth=1.6, label="training")
    else:
        means = np.convolve(values, np.ones(window) / window, mode="valid")
        panel.plot(steps, values, color="#2563eb", linewidth=0.8, alpha=0.35, label="training, every step logged")
        panel.plot(
            steps[window // 2 :][: len(means)], means, color="#2563eb", linewidth=1.8, label=f"mean of {window} steps"
        )
    panel.plot(*evaluation, "o", color="#ea580c", markersize=6, label="evaluation")
    panel.set_title(name, loc="left", fontsize=12, fontweight="bold")
    if len(values):
        panel.set_title(f"{values[0]:.3g} \u2192 {values[-1]:.3g}", loc="right", fontsize=11, color="#555555")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=10, labelbottom=True)
    panel.set_xlabel("step", fontsize=10)
