"""The report of a comparison, outputs/<sweep>/compare/: plots, and one page that contains them all."""

from collections.abc import Sequence
from pathlib import Path

from bbu_train.compare import page
from bbu_train.compare.candidates import swept_keys
from bbu_train.compare.comparison import Comparison
from bbu_train.errors import InputError
from bbu_train.images.fonts import use_in_plots

FOLDER = "compare"
PAGE = "index.html"
CAPTIONS = {
    "effects.png": "Effect of each key, adjusted for the others",
    "heat.png": "Both keys together",
    "parallel.png": "Parallel coordinates: one line per candidate",
    "curves.png": "Mean over the steps, with one standard deviation over seeds",
}
"""The captions of the plots, in the order of the page."""


def write_report(comparison: Comparison) -> Path:
    """Write the plots and the page over those of an earlier comparison. Return the folder."""
    folder = comparison.folder / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        for name in CAPTIONS:
            (folder / name).unlink(missing_ok=True)
        _plot(comparison, folder)
        plots = [(caption, folder / name) for name, caption in CAPTIONS.items() if (folder / name).exists()]
        (folder / PAGE).write_text(page.render_page(comparison, plots), encoding="utf-8")
    except OSError as error:
        raise InputError(f"The comparison cannot be written into {folder}: {error}") from error
    return folder


def _plot(comparison: Comparison, folder: Path) -> None:
    from bbu_train.compare import effect_plots, plots

    candidates, metric, mode = comparison.ranking, comparison.metric, comparison.mode
    keys = swept_keys(candidates)
    use_in_plots([*keys, *(str(value) for candidate in candidates for value in candidate.settings.values())])
    plots.plot_curves(candidates, metric, folder / "curves.png")
    if comparison.effects is not None:
        plots.plot_parallel_coordinates(candidates, metric, mode, folder / "parallel.png")
        effect_plots.plot_effects(comparison.effects, metric, folder / "effects.png")
    if len(keys) == 2 and _is_grid(comparison, keys):
        effect_plots.plot_heat_map(candidates, metric, mode, folder / "heat.png")


def _is_grid(comparison: Comparison, keys: Sequence[str]) -> bool:
    """Return whether candidates fill a third of the heat map. Those of a random search fill almost nothing."""
    num_rows, num_columns = (len({candidate.settings[key] for candidate in comparison.ranking}) for key in keys)
    return 3 * len(comparison.ranking) >= num_rows * num_columns
