"""The evaluation table: its rows as text, as named metrics, and the gain from teachers."""

from dataclasses import dataclass

from bbu_train.evaluate.measure import EvaluationRow
from bbu_train.reporting.tables import Table, Value, as_text

BOX_COLUMNS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "recall_1": "AR 1",
    "recall_10": "AR 10",
    "recall_100": "AR 100",
    "f1": "F1",
    "agnostic_ap50": "agnostic AP50",
    "unknown_class_boxes": "unknown class",
}
COUNTS = ("unknown_class_boxes",)
DESCRIPTION_COLUMNS = {"matched": "matched", "description/exact": "exact"}
COST_COLUMNS = {"malformed": "malformed", "student_lm": "loss", "seconds": "s/picture"}
UNDEFINED = "-"


@dataclass(frozen=True)
class EvaluationTable:
    """The scores of a checkpoint of a run on a split."""

    run: str
    step: int
    split: str
    rows: tuple[EvaluationRow, ...]

    @property
    def metric_names(self) -> list[str]:
        """Every metric that at least one row has; rows lack the metrics that are undefined for them."""
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def gains(self) -> dict[str, float]:
        """The gain from one teacher, and with the ending `/teachers_<k>` from k; above 0, teachers help.

        `in_context_gain` is the decrease of the students' loss in nats per token. `in_context_gain/<route>_<metric>`
        is the increase of a route's AP50 or F1. Both are relative to the row without teachers; without it there are
        no gains.
        """
        metrics_by_row = {(row.route, row.num_teachers): row.metrics for row in self.rows}
        gains = {}
        for (route, num_teachers), metrics in metrics_by_row.items():
            without = metrics_by_row.get((route, 0))
            if num_teachers == 0 or without is None:
                continue
            ending = "" if num_teachers == 1 else f"/teachers_{num_teachers}"
            gains[f"in_context_gain{ending}"] = without["student_lm"] - metrics["student_lm"]
            for name in {"ap50", "f1"} & metrics.keys():
                gains[f"in_context_gain/{route}_{name}{ending}"] = metrics[name] - without[name]
        return dict(sorted(gains.items()))

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers under the names by which they are logged.

        Names begin with the split; with "eval" for validation, as in training.
        """
        prefix = "eval" if self.split == "validation" else self.split
        named = {
            f"{prefix}/{row.route}/teachers_{row.num_teachers}/{name}": value
            for row in self.rows
            for name, value in row.metrics.items()
        }
        return named | {f"{prefix}/{name}": value for name, value in self.gains.items()}

    def as_text(self) -> str:
        """Return tables for a terminal: boxes, descriptions and costs, classes, and gains."""
        levels = [name for name in self.metric_names if name.startswith("description/level_")]
        level_columns = {name: name.removeprefix("description/").replace("_", " ") for name in levels}
        columns = DESCRIPTION_COLUMNS | level_columns | COST_COLUMNS
        tables = [
            self._table_of("Boxes", BOX_COLUMNS),
            self._table_of("Descriptions of matched objects, and costs", columns),
        ]
        classes = [name for name in self.metric_names if name.startswith("ap50/")]
        if classes:
            head = ["AP50", *(f"{row.route} {row.num_teachers}" for row in self.rows)]
            rows = [[name.removeprefix("ap50/"), *(_format(row, name) for row in self.rows)] for name in classes]
            tables.append(Table("Classes, by route and number of teachers", head, rows))
        if self.gains:
            tables.append(self._table_of_gains())
        title = f"step {self.step}, {self.split}: {self.rows[0].num_pictures} pictures"
        return "\n\n".join([title, *(f"{table.title}\n{as_text(table)}" for table in tables)])

    def _table_of_gains(self) -> Table:
        numbers = [number for number in sorted({row.num_teachers for row in self.rows}) if number > 0]
        names = dict.fromkeys(name.split("/teachers_")[0] for name in self.gains)
        endings = ["" if number == 1 else f"/teachers_{number}" for number in numbers]
        rows = [[name, *(f"{self.gains[name + ending]:+.3f}" for ending in endings)] for name in names]
        return Table("Gain over no teachers", ["teachers", *map(str, numbers)], rows)

    def _table_of(self, title: str, columns: dict[str, str]) -> Table:
        rows = [[row.route, row.num_teachers, *(_format(row, name) for name in columns)] for row in self.rows]
        return Table(title, ["route", "teachers", *columns.values()], rows)


def _format(row: EvaluationRow, name: str) -> Value:
    return f"{row.metrics[name]:.{0 if name in COUNTS else 3}f}" if name in row.metrics else UNDEFINED
