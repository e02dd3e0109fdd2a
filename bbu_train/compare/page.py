"""The HTML page of a comparison: tables that can be sorted, and plots."""

import base64
from collections.abc import Sequence
from pathlib import Path

from bbu_train.compare.comparison import Comparison
from bbu_train.reporting import html_page
from bbu_train.reporting.tables import Value, format_number

TEMPLATE = Path(__file__).parent / "templates/comparison.html.j2"


def render_page(comparison: Comparison, plots: Sequence[tuple[str, Path]]) -> str:
    """Return the page as HTML. `plots` are (caption, PNG file), in order."""
    command = "\n".join([comparison.command, *(f"# {note}" for note in comparison.command_notes)])
    return html_page.render(
        TEMPLATE,
        title=f"{comparison.folder.name}: {comparison.metric}",
        summary=comparison.summary,
        command=command,
        leaderboard=comparison.leaderboard,
        effect_tables=comparison.effect_tables,
        effects_note=comparison.effects_note,
        plots=[(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in plots],
        excluded=comparison.excluded,
        format_number=format_number,
        sort_key=sort_key,
    )


def sort_key(value: Value) -> str:
    """Return the text that a cell is sorted by: the mean of "0.41 ± 0.02", 2 of "2=" and of "2/3", else the value."""
    if not isinstance(value, str):
        return repr(value)
    return value.split(" ± ")[0].split("/")[0].rstrip("=")
