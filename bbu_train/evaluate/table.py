"""The rows as tables of words, as metrics with names, and what teachers are worth."""

from dataclasses import dataclass

from bbu_train.evaluate.measure import EvaluationRow
from bbu_train.reporting.tables import Table, Value, as_text

BOXES = {
    **{"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"},
    **{"recall_1": "AR 1", "recall_10": "AR 10", "recall_100": "AR 100", "f1": "F1", "agnostic_ap50": "agnostic AP50"},
}
WORDS = {"matched": "found", "description/exact": "exact"}
COSTS = {"malformed": "malformed", "student_lm": "loss", "seconds": "s/picture"}
ABSENT = "-"


@dataclass(frozen=True)
class Scores:
    """What a checkpoint of a run scores on a split."""

    run: str
    step: int
    split: str
    rows: tuple[EvaluationRow, ...]

    @property
    def names(self) -> list[str]:
        """Every metric that any row has; a row lacks what is not defined for it."""
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def gains(self) -> dict[str, float]:
        """`in_context_gain` by its full name: what changes from no teacher to one, and `.../teachers_<k>`: to k.

        The gain itself is the fall of the students' loss, in nats a token; `in_context_gain/<route>_<metric>` is the
        rise of a route's AP50 and F1. Above 0 teachers help.
        """
        by_place = {(row.route, row.num_teachers): row.metrics for row in self.rows}
        gains = {}
        for (route, number), metrics in by_place.items():
            without = by_place.get((route, 0))
            if number == 0 or without is None:
                continue
            ending = "" if number == 1 else f"/teachers_{number}"
            gains[f"in_context_gain{ending}"] = without["student_lm"] - metrics["student_lm"]
            for name in {"ap50", "f1"} & metrics.keys():
                gains[f"in_context_gain/{route}_{name}{ending}"] = metrics[name] - without[name]
        return dict(sorted(gains.items()))

    @property
    def metrics(self) -> dict[str, float]:
        """All by one name each, as they are logged: validation's begin with "eval", as in a run."""
        prefix = "eval" if self.split == "validation" else self.split
        named = {
            f"{prefix}/{row.route}/teachers_{row.num_teachers}/{name}": value
            for row in self.rows
            for name, value in row.metrics.items()
        }
        return named | {f"{prefix}/{name}": value for name, value in self.gains.items()}

    def as_text(self) -> str:
        """Tables for a terminal: boxes, descriptions with costs, classes, and gains."""
        levels = [name for name in self.names if name.startswith("description/level_")]
        words = WORDS | {name: name.removeprefix("description/").replace("_", " ") for name in levels} | COSTS
        tables = [self._rows_by("Boxes", BOXES), self._rows_by("Descriptions of what is found, and costs", words)]
        classes = [name for name in self.names if name.startswith("ap50/")]
        if classes:
            head = ["AP50", *(f"{row.route} {row.num_teachers}" for row in self.rows)]
            values = [[name.removeprefix("ap50/"), *(_shown(row, name) for row in self.rows)] for name in classes]
            tables.append(Table("Classes, by route and number of teachers", head, values))
        if self.gains:
            tables.append(self._gains())
        title = f"step {self.step}, {self.split}: {self.rows[0].num_pictures} pictures"
        return "\n\n".join([title, *(f"{table.title}\n{as_text(table)}" for table in tables)])

    def _gains(self) -> Table:
        numbers = [number for number in sorted({row.num_teachers for row in self.rows}) if number > 0]
        kinds = dict.fromkeys(name.split("/teachers_")[0] for name in self.gains)
        endings = ["" if number == 1 else f"/teachers_{number}" for number in numbers]
        rows = [[kind, *(f"{self.gains[kind + ending]:+.3f}" for ending in endings)] for kind in kinds]
        return Table("What changes from no teacher to some", ["teachers", *map(str, numbers)], rows)

    def _rows_by(self, title: str, columns: dict[str, str]) -> Table:
        rows = [[row.route, row.num_teachers, *(_shown(row, name) for name in columns)] for row in self.rows]
        return Table(title, ["route", "teachers", *columns.values()], rows)


def _shown(row: EvaluationRow, name: str) -> Value:
    return f"{row.metrics[name]:.3f}" if name in row.metrics else ABSENT
