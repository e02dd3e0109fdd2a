"""What became of every run of a sweep: one table, and the runs that may be started again."""

import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers import jobs
from launchers.ledger import Entry, Ledger, State

TAIL_BYTES = 65536


@dataclass(frozen=True)
class RunStatus:
    entry: Entry
    state: State

    def may_start(self, states: Collection[str]) -> bool:
        """Whether the run is in one of these states, and no job has it in hand."""
        return self.state.name in states and not self.state.in_hand


def rows(ledger: Ledger, runs: Sequence[str] | None = None) -> list[RunStatus]:
    """Each of these runs with its present state, in this order; or every run, in the order of names."""
    job_state = jobs.seen()
    entries = ledger.entries() if runs is None else [ledger.entry(run) for run in runs]
    return [RunStatus(entry, entry.state(job_state)) for entry in entries]


def summary(found: Sequence[RunStatus]) -> str:
    counts = Counter(row.state.name for row in found)
    return f"{len(found)} runs: {', '.join(f'{count} {name}' for name, count in counts.most_common())}"


def table(ledger: Ledger, found: Sequence[RunStatus]) -> str:
    """A line a run: state, job, steps made, what is its own among the overrides, and the reason of its state."""
    cells = [row.entry.cell for row in found]
    shared = set.intersection(*(set(cell["overrides"]) for cell in cells)) if len(cells) > 1 else set()
    lines = [("run", "state", "job", "step", "overrides")]
    for row, cell in zip(found, cells, strict=True):
        own = " ".join(text for text in cell["overrides"] if text not in shared)
        lines.append((row.entry.run, row.state.name, row.state.job or "-", _progress(cell), own))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    width = shutil.get_terminal_size((160, 24)).columns
    text = [_cut("  ".join(map(str.ljust, line, widths)).rstrip(), width) for line in lines]
    return "\n".join([f"{ledger.sweep}: {summary(found)}", *text])


def reasons(found: Sequence[RunStatus], names: Collection[str]) -> str:
    """Why runs are in these states, with the traceback of those that failed, and where all is that they said."""
    parts = []
    for row in found:
        newest = row.entry.newest()
        if newest and row.state.name in names and row.state.reason:
            traceback = newest.read("state").get("traceback", "") if row.state.name == "failed" else ""
            logs = newest.folder / "log.txt", newest.folder.parents[1] / f"jobs/{row.state.job}_0_log.out"
            said = "".join(f"\nWhat it said: {log}" for log in logs if log.exists())
            parts.append(f"{row.entry.run} {row.state.name}: {row.state.reason}\n{traceback}".rstrip() + said)
    return "\n\n".join(parts)


def _progress(cell: Mapping[str, Any]) -> str:
    """`<last step>/<steps>`, of what the run has logged."""
    return f"{_last_step(Path(cell['folder']) / 'metrics.jsonl')}/{cell['steps']}"


def _last_step(path: Path) -> int:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # a line that is being written
            continue
    return 0


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"
