"""metrics.jsonl: one JSON object a line, `{"step": 12, "time/logged": 1767225600.123, "loss/total": 3.1, ...}`."""

import json
import math
import time
from pathlib import Path
from typing import BinaryIO

from bbu_train.errors import all_problems
from bbu_train.runtime.atomic_write import atomic_write


class Jsonl:
    """Appends every row to <folder>/metrics.jsonl, so that a kill costs at most the row that was being written.

    A step may have several rows (training, evaluation). `time/logged` is in seconds since 1970: who sends the rows on
    later, such as the MLflow tracker, can say when they were made. Values that JSON has no number for are the strings
    "NaN", "Infinity" and "-Infinity": every JSON reader accepts them, and `float` turns them back.
    """

    def __init__(self, folder: Path | str):
        self.path = Path(folder) / "metrics.jsonl"
        self.file: BinaryIO | None = None

    def open(self, config: dict, step: int) -> None:
        """Cut off what the run will write again: the rows after `step`, and with `step` 0 all of them.

        The row of an evaluation at `step` stays: what is saved says whether it was made. A run that begins at 0
        evaluates at its start, so it writes its row of step 0 again.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            cut_after(self.path, step)
        self.file = self.path.open("ab")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        row = {"step": step, "time/logged": round(time.time(), 3)} | {
            name: _json_value(value) for name, value in metrics.items()
        }
        self.file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self.file.flush()

    def artifact(self, path: Path) -> None:
        """Nothing to do: the file lies in the run's folder already."""

    def close(self, state: str) -> None:
        self.file.close()


def _json_value(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def cut_after(path: Path, step: int) -> None:
    """Rewrite `path` with the rows up to `step` (none if `step` is 0), byte for byte, or leave it alone if it ends so.

    The new file takes the old one's place at once: a kill leaves one or the other.
    """
    kept = b"".join(line for line, row in read_rows(path) if step > 0 and row["step"] <= step)
    if kept == path.read_bytes():
        return
    atomic_write(path, kept)


def read_rows(path: Path) -> list[tuple[bytes, dict]]:
    """Each complete line and the row in it. A last line without its end was cut short by a kill: it is left out."""
    rows, problems = [], []
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
                problems.append(f'{path}:{number}: expected an object with a whole "step", found {line[:80]!r}')
    if problems:
        raise all_problems(str(path), problems, "Only this program writes the file: remove the lines named.")
    return rows
