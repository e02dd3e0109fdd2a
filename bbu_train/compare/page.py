"""The page of a comparison: tables that sort, and pictures."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from bbu_train.reporting import html_page
from bbu_train.reporting.tables import Table, Value, number

STYLE = """
h3 { font-size: .95rem; margin: 1rem 0 .3rem; font-family: ui-monospace, monospace; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e5e7eb; vertical-align: top; }
th { cursor: pointer; white-space: nowrap; border-bottom: 2px solid #9ca3af; }
th::after { content: " \\2195"; color: #9ca3af; }
th[data-order="1"]::after { content: " \\2191"; } th[data-order="-1"]::after { content: " \\2193"; }
td { white-space: nowrap; } td:last-child { white-space: normal; overflow-wrap: anywhere; }
.side { display: flex; flex-wrap: wrap; gap: 1.2rem 3rem; }
pre { background: #f3f4f6; padding: .7rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 6px; }
img { max-width: 100%; height: auto; }
"""
SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const order = head.dataset.order === "1" ? -1 : 1;
  for (const other of table.querySelectorAll("th")) delete other.dataset.order;
  head.dataset.order = order;
  const key = row => row.cells[column].dataset.sort;
  const compare = (a, b) => {
    const [x, y] = [Number(key(a)), Number(key(b))];
    return Number.isNaN(x) || Number.isNaN(y) ? key(a).localeCompare(key(b)) : x - y;
  };
  body.append(...[...body.rows].sort((a, b) => order * compare(a, b)));
});
"""


def page(
    title: str,
    summary: Sequence[str],
    command: str,
    leaderboard: Table,
    pictures: Sequence[tuple[str, Path]],
    effects: Sequence[Table],
    about_effects: str,
    apart: Table,
) -> str:
    """The page as HTML. Every text is escaped: values of a config are the user's."""
    parts = [f"<h1>{html.escape(title)}</h1>", *(_note(line) for line in summary)]
    parts += ["<h2>Command of the best cell</h2>", f"<pre>{html.escape(command)}</pre>", _section(leaderboard)]
    if effects:
        tables = "".join(f"<div>{_table(each)}</div>" for each in effects)
        parts += ["<h2>Marginal effects</h2>", _note(about_effects), f'<div class="side">{tables}</div>']
    for caption, path in pictures:
        source = base64.b64encode(path.read_bytes()).decode()
        words = html.escape(caption)
        parts += [f"<h2>{words}</h2>", f'<img alt="{words}" src="data:image/png;base64,{source}">']
    if apart.rows:
        parts.append(_section(apart))
    return html_page.page(title, STYLE, "\n".join(parts), SCRIPT)


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def _section(table: Table) -> str:
    return f"<h2>{html.escape(table.title)}</h2>{_table(table)}{_note(table.note)}"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(word)}</th>" for word in table.head)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(value: Value) -> str:
    """Sorted by its number: that before the spread in "0.41 ± 0.02", that before the sign in "2="."""
    text = number(value)
    first = text.split(" ± ")[0].split("/")[0].rstrip("=")
    exact = first if isinstance(value, str) else repr(value)
    return f'<td data-sort="{html.escape(exact)}">{html.escape(text)}</td>'
