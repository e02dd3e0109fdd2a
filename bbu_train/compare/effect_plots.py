"""Plots of what the swept keys do: the effect of each key, and a heat map of two keys."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bbu_train.compare.candidates import Candidate, short_names, sorted_distinct, swept_keys
from bbu_train.compare.effects import Effects
from bbu_train.compare.formatting import abbreviate, mean_and_std
from bbu_train.compare.plots import COLORS, DPI, GREY, color_scale

NUM_COLUMNS = 3


def plot_effects(effects: Effects, metric: str, path: Path) -> None:
    """Plot the metric at each level of each key: adjusted values of runs as dots, with their mean and deviation.

    All keys share one vertical axis, so that their effects can be compared.
    """
    names = short_names(list(effects.by_key))
    num_columns = min(NUM_COLUMNS, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 3.4 * num_rows), dpi=DPI, layout="constrained")
    all_axes = list(figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).flat)
    for axes, (key, levels) in zip(all_axes, effects.by_key.items(), strict=False):
        positions = range(len(levels))
        for position, level in zip(positions, levels, strict=True):
            offsets = np.linspace(-0.12, 0.12, len(level.adjusted)) if len(level.adjusted) > 1 else [0]
            axes.plot(position + np.array(offsets), level.adjusted, "o", color=GREY, markersize=3.5, alpha=0.7)
        means, stds = [level.adjusted_mean for level in levels], [level.std or 0 for level in levels]
        axes.errorbar(positions, means, stds, color=COLORS[0], marker="o", capsize=4, linewidth=1.8, zorder=3)
        labels = [abbreviate(level.value, 22).replace(" to ", "\nto ") for level in levels]
        max_length = max(len(line) for label in labels for line in label.split("\n"))
        slant = {"rotation": 30, "ha": "right"} if max_length * len(labels) > 42 else {}
        axes.set_xticks(positions, labels, fontsize=9, **slant)
        axes.set_xlim(-0.5, len(levels) - 0.5)
        axes.set_title(names[key], loc="left", fontsize=11, fontweight="bold")
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelleft=True)
    for axes in all_axes[len(names) :]:
        axes.set_visible(False)
    figure.supylabel(metric, fontsize=10)
    figure.savefig(path)


def plot_heat_map(candidates: Sequence[Candidate], metric: str, mode: str, path: Path) -> None:
    """Plot the mean of each candidate of a sweep over two keys, with its standard deviation and its number of runs."""
    keys = swept_keys(candidates)
    rows, columns = (sorted_distinct(candidate.settings[key] for candidate in candidates) for key in keys)
    grid = np.full((len(rows), len(columns)), np.nan)
    figure = Figure(figsize=(2.5 + 1.45 * len(columns), 1.6 + 0.75 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colormap, normalize = color_scale(candidates, mode)
    for candidate in candidates:
        row, column = rows.index(candidate.settings[keys[0]]), columns.index(candidate.settings[keys[1]])
        grid[row, column] = candidate.mean
        red, green, blue, _ = colormap(normalize(candidate.mean))
        color = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.55 else "black"
        text = (
            f"{mean_and_std(candidate.mean, candidate.std).replace(' ± ', chr(10) + '± ')}\nn = {candidate.run_count}"
        )
        axes.text(column, row, text, color=color, ha="center", va="center", fontsize=9, linespacing=1.15)
    for row, column in np.argwhere(np.isnan(grid)):
        axes.text(column, row, "no run", color=GREY, ha="center", va="center", fontsize=9)
    image = axes.imshow(grid, cmap=colormap, norm=normalize, aspect="auto", origin="lower")
    names = short_names(keys)
    axes.set_yticks(range(len(rows)), map(abbreviate, rows), fontsize=10)
    axes.set_xticks(range(len(columns)), map(abbreviate, columns), fontsize=10)
    axes.set_ylabel(names[keys[0]], fontsize=11, fontweight="bold")
    axes.set_xlabel(names[keys[1]], fontsize=11, fontweight="bold")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes).set_label(metric, fontsize=10)
    figure.savefig(path)
