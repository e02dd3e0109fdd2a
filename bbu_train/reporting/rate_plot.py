"""The plot of learning rates and gradient norms of a run, by group of parameters."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bbu_train.reporting.curves import BLACK, Series, draw_line, finish, legend_beside, read_series

TITLES = {
    "lr/": "Learning rate of each group that is trained",
    "grad_norm/": "Gradient norm of each group, before clipping",
}


def plot_rates(metrics_path: Path, image_path: Path) -> None:
    """Plot each `lr/*` and, below, each `grad_norm/*` of metrics.jsonl over the steps. Equal curves share a line.

    Norms of a run of many steps are shown by their moving average. Values that are not finite are gaps, and counted.
    """
    from matplotlib.figure import Figure

    series = read_series(metrics_path)
    figure = Figure(figsize=(14, 8), dpi=100)
    panels = figure.subplots(2, 1)
    figure.subplots_adjust(left=0.06, right=0.7, top=0.93, bottom=0.07, hspace=0.4)  # faster than automatic margins
    for axes, (prefix, title) in zip(panels, TITLES.items(), strict=True):
        for number, (names, values) in enumerate(_distinct(series, prefix).items()):
            line = values.smooth() if prefix == "grad_norm/" else values
            color = BLACK if "grad_norm/total" in names else None
            draw_line(axes, line, number, _label(names, line, values.num_gaps), color)
        finish(axes, title)
        if axes.lines:
            legend_beside(axes, "highest value, at the end, metric")
    figure.savefig(image_path)


def _distinct(series: Mapping[str, Series], prefix: str) -> dict[tuple[str, ...], Series]:
    """Return the series whose names begin with `prefix`. The key of equal ones has all of their names."""
    names_of: dict[bytes, list[str]] = {}
    for name, each in series.items():
        if name.startswith(prefix):
            names_of.setdefault(np.stack(each).tobytes(), []).append(name)
    return {tuple(names): series[names[0]] for names in names_of.values()}


def _label(names: tuple[str, ...], line: Series, num_gaps: int) -> str:
    finite = line.values[np.isfinite(line.values)]
    gaps = f" ({num_gaps} not finite)" if num_gaps else ""
    return f"{max(finite, default=np.nan):.3g}  {line.last():.3g}  {', '.join(names)}{gaps}"
