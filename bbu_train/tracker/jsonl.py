"""metrics.jsonl: one JSON object per line, `{"step": 12, "time/logged": 1767225600.123, "loss/total": 3.1, ...}`."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from bbu_train.errors import all_problems
from bbu_train.runtime.atomic_write import atomic_write


class Jsonl:
    """Append every row to <folder>/metrics.jsonl, so that a kill costs at most the row that was being written.

    A step may have several rows (training, evaluation). `time/logged` is in seconds since 1970, so that the MLflow
    tracker, which may send a row later, knows when it was logged. Values that JSON has no number for are the strings
    "NaN", "Infinity" and "-Infinity": every JSON reader accepts them, and `float` turns them back.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.file: BinaryIO | None = None

    def open(self, config: dict[str, Any], step: int) -> None:
        """Open the file and remove the rows that the run will write again: those after `step`, or all if `step` is 0.

        The row of an evaluation at `step` stays: the checkpoint records whether that evaluation was done. A run that
        starts at 0 evaluates first, so it writes its row of step 0 again.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _remove_rows_after(self.path, step)
        self.file = self.path.open("ab")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        assert self.file is not None, "open() comes first"
        row = {"step": step, "time/logged": round(time.time(), 3)} | {
            name: _json_value(value) for name, value in metrics.items()
        }
        self.file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self.file.flush()

    def sync(self) -> None:
        """Wait until all rows are on disk, so that a checkpoint never survives a power cut that its rows do not."""
        assert self.file is not None, "open() comes first"
        os.fsync(self.file.fileno())

    def artifact(self, path: Path) -> None:
        """Do nothing: the file is in the run's folder already."""

    def close(self, state: str) -> None:
        assert self.file is not None, "open() comes first"
        self.file.close()


def _json_value(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _remove_rows_after(path: Path, step: int) -> None:
    """Replace `path`, atomically, by its rows up to `step` (none if `step` is 0), unchanged byte for byte."""
    kept = b"".join(line for line, row in read_rows(path) if step > 0 and row["step"] <= step)
    if kept != path.read_bytes():
        atomic_write(path, kept)


def read_rows(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Read each complete line and its row.

    A last line without a newline was cut short by a kill and is left out. Raises InputError that lists all lines that
    are not rows.
    """
    rows: list[tuple[bytes, dict[str, Any]]] = []
    problems = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                problems.append(f"{path}:{number}: {error}")
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append((line, row))
            else:
                problems.append(f'{path}:{number}: expected an object with an integer "step", found {line[:80]!r}')
    if problems:
        raise all_problems(str(path), problems, "Only this program writes the file: remove the lines named.")
    return rows
