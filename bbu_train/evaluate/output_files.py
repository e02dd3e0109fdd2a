"""The table as files: table.csv, table.json and table.png."""

import csv
import json
from pathlib import Path

from bbu_train.evaluate import plot
from bbu_train.evaluate.table import Scores


def write(scores: Scores, folder: Path) -> None:
    """Into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"route": row.route, "teachers": row.num_teachers, "pictures": row.num_pictures}
        | {name: row.metrics.get(name) for name in scores.names}
        for row in scores.rows
    ]
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, rows[0])
        lines.writeheader()
        lines.writerows(rows)
    whole = {"run": scores.run, "step": scores.step, "split": scores.split, "rows": rows, "gains": scores.gains}
    (folder / "table.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot.draw(scores, folder / "table.png")
