"""The evaluation table as files: table.csv, table.json and table.png."""

import csv
import json
from pathlib import Path

from bbu_train.evaluate import plot
from bbu_train.evaluate.table import EvaluationTable


def write(table: EvaluationTable, folder: Path) -> None:
    """Write the three files into `folder`, which is created if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"route": row.route, "teachers": row.num_teachers, "pictures": row.num_pictures}
        | {name: row.metrics.get(name) for name in table.metric_names}
        for row in table.rows
    ]
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    content = {"run": table.run, "step": table.step, "split": table.split, "rows": rows, "gains": table.gains}
    (folder / "table.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot.draw(table, folder / "table.png")
