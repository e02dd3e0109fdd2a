"""What the comparison leaves in outputs/<sweep>/compare/: pictures, and one page that holds them all."""

from pathlib import Path

from bbu_train.compare import page
from bbu_train.compare.cells import swept_keys
from bbu_train.compare.comparison import Comparison
from bbu_train.errors import InputError
from bbu_train.images.fonts import use_in_plots

FOLDER = "compare"
PAGE = "index.html"
PICTURES = {
    "effects.png": "Effect of each key, the others evened out",
    "heat.png": "Both keys together",
    "parallel.png": "Every cell through its values",
    "curves.png": "Over the steps, seeds as bands",
}
"""In the order of the page."""


def write(found: Comparison) -> Path:
    """Write everything, replacing what an earlier comparison left; give the folder."""
    folder = found.folder / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        for name in PICTURES:
            (folder / name).unlink(missing_ok=True)
        _draw(found, folder)
        drawn = [(caption, folder / name) for name, caption in PICTURES.items() if (folder / name).exists()]
        (folder / PAGE).write_text(_page(found, drawn), encoding="utf-8")
    except OSError as error:
        raise InputError(f"The comparison cannot be written into {folder}: {error}") from error
    return folder


def _draw(found: Comparison, folder: Path) -> None:
    from bbu_train.compare import panels, plots

    keys = swept_keys(found.ranking)
    use_in_plots([*keys, *(str(value) for cell in found.ranking for value in cell.settings.values())])
    plots.curves(found.ranking, found.metric, folder / "curves.png")
    if found.effects is not None:
        plots.parallel_coordinates(found.ranking, found.metric, found.mode, folder / "parallel.png")
        panels.effects(found.effects, found.metric, folder / "effects.png")
    if len(keys) == 2 and _is_a_grid(found, keys):
        panels.heat_map(found.ranking, found.metric, found.mode, folder / "heat.png")


def _is_a_grid(found: Comparison, keys: list[str]) -> bool:
    """Whether at least a third of the map has runs; a random search over two numbers would be nearly empty."""
    sizes = [len({cell.settings[key] for cell in found.ranking}) for key in keys]
    return 3 * len(found.ranking) >= sizes[0] * sizes[1]


def _page(found: Comparison, drawn: list[tuple[str, Path]]) -> str:
    command = found.command
    if found.gone:
        command += f"\n# without what this version no longer has: {', '.join(found.gone)}"
    title = f"{found.folder.name}: {found.metric}"
    return page.page(
        title,
        found.summary,
        command,
        found.leaderboard,
        drawn,
        found.effect_tables,
        found.about_effects,
        found.excluded,
    )
