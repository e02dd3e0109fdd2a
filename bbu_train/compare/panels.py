"""Pictures of what the swept keys do: a panel for each key's effect, and the map of two keys."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bbu_train.compare.cells import RankedCell, in_order, short_names, swept_keys
from bbu_train.compare.effects import Effects
from bbu_train.compare.figures import plus_minus, short
from bbu_train.compare.plots import COLORS, DPI, GREY, colors_of

COLUMNS = 3


def effects(found: Effects, metric: str, path: Path) -> None:
    """The metric at each value of each key: runs as dots, with what the other keys add taken away, and their mean.

    All panels have one vertical axis, so that the key that matters most is the one that is seen to.
    """
    names = short_names(list(found.by_key))
    num_columns = min(COLUMNS, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 3.4 * num_rows), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).flat)
    for panel, (key, levels) in zip(panels, found.by_key.items(), strict=False):
        places = range(len(levels))
        for place, level in zip(places, levels, strict=True):
            aside = np.linspace(-0.12, 0.12, len(level.adjusted)) if len(level.adjusted) > 1 else [0]
            panel.plot(place + np.array(aside), level.adjusted, "o", color=GREY, markersize=3.5, alpha=0.7)
        means, spreads = [level.adjusted_mean for level in levels], [level.spread or 0 for level in levels]
        panel.errorbar(places, means, spreads, color=COLORS[0], marker="o", capsize=4, linewidth=1.8, zorder=3)
        labels = [short(level.value, 22).replace(" to ", "\nto ") for level in levels]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        slant = {"rotation": 30, "ha": "right"} if longest * len(labels) > 42 else {}
        panel.set_xticks(places, labels, fontsize=9, **slant)
        panel.set_xlim(-0.5, len(levels) - 0.5)
        panel.set_title(names[key], loc="left", fontsize=11, fontweight="bold")
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelleft=True)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.supylabel(metric, fontsize=10)
    figure.savefig(path)


def heat_map(cells: Sequence[RankedCell], metric: str, mode: str, path: Path) -> None:
    """The mean of every cell of a sweep over two keys, with its spread and its number of runs."""
    keys = swept_keys(cells)
    rows, columns = (in_order(cell.settings[key] for cell in cells) for key in keys)
    grid = np.full((len(rows), len(columns)), np.nan)
    figure = Figure(figsize=(2.5 + 1.45 * len(columns), 1.6 + 0.75 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colormap, span = colors_of(cells, mode)
    for cell in cells:
        place = rows.index(cell.settings[keys[0]]), columns.index(cell.settings[keys[1]])
        grid[place] = cell.mean
        red, green, blue, _ = colormap(span(cell.mean))
        ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.55 else "black"
        text = f"{plus_minus(cell.mean, cell.spread).replace(' ± ', chr(10) + '± ')}\nn = {cell.count}"
        axes.text(place[1], place[0], text, color=ink, ha="center", va="center", fontsize=9, linespacing=1.15)
    for row, column in np.argwhere(np.isnan(grid)):
        axes.text(column, row, "no run", color=GREY, ha="center", va="center", fontsize=9)
    image = axes.imshow(grid, cmap=colormap, norm=span, aspect="auto", origin="lower")
    names = short_names(keys)
    axes.set_yticks(range(len(rows)), map(short, rows), fontsize=10)
    axes.set_xticks(range(len(columns)), map(short, columns), fontsize=10)
    axes.set_ylabel(names[keys[0]], fontsize=11, fontweight="bold")
    axes.set_xlabel(names[keys[1]], fontsize=11, fontweight="bold")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes).set_label(metric, fontsize=10)
    figure.savefig(path)
