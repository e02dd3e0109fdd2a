"""The state of every run of a sweep: as a table, and as the list of runs that can be started again."""

import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers import job_states
from launchers.ledger import Entry, Ledger, State

TAIL_BYTES = 65536


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, and whether the process that read it had begun the run itself.

    Such a process has replaced itself since (`runtime/restart.py`).
    """

    entry: Entry
    state: State
    is_own: bool = False

    def can_start(self, states: Collection[str]) -> bool:
        """Whether the run is in one of these states and has no live job, or is to be continued by its own process."""
        is_interrupted = self.is_own and self.state.name == job_states.RUNNING
        return is_interrupted or (self.state.name in states and not self.state.has_live_job)


def read_statuses(ledger: Ledger, runs: Sequence[str] | None = None) -> list[RunStatus]:
    """Return the status of each of these runs in this order, or of every run of the ledger, sorted by name."""
    job_state = job_states.lookup()
    entries = ledger.entries() if runs is None else [ledger.entry(run) for run in runs]
    own_job, all_states = job_states.local_job_id(), [entry.state(job_state) for entry in entries]
    return [RunStatus(entry, state, state.job == own_job) for entry, state in zip(entries, all_states, strict=True)]


def format_table(ledger: Ledger, statuses: Sequence[RunStatus]) -> str:
    """Return a table with a line for each run: state, job, last step, and the overrides that not every run has."""
    cells = [status.entry.cell for status in statuses]
    shared = set.intersection(*(set(cell["overrides"]) for cell in cells)) if len(cells) > 1 else set()
    rows = [("run", "state", "job", "step", "overrides")]
    for status, cell in zip(statuses, cells, strict=True):
        own = " ".join(text for text in cell["overrides"] if text not in shared)
        rows.append((status.entry.run, status.state.name, status.state.job or "-", _progress(cell), own))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    width = shutil.get_terminal_size((160, 24)).columns
    lines = [_truncate("  ".join(map(str.ljust, row, widths)).rstrip(), width) for row in rows]
    return "\n".join([f"{ledger.sweep}: {_count_states(statuses)}", *lines])


def format_reasons(statuses: Sequence[RunStatus], states: Collection[str]) -> str:
    """Return why runs are in these states, with the traceback of each failed run and the paths of its logs."""
    parts = []
    for status in statuses:
        attempt, state = status.entry.newest_attempt(), status.state
        if attempt and state.name in states and state.reason:
            traceback = attempt.read("state").get("traceback", "") if state.name == "failed" else ""
            logs = attempt.folder / "log.txt", attempt.folder.parents[1] / f"jobs/{state.job}_0_log.out"
            paths = "".join(f"\nLog: {log}" for log in logs if log.exists())
            parts.append(f"{status.entry.run} {state.name}: {state.reason}\n{traceback}".rstrip() + paths)
    return "\n\n".join(parts)


def _count_states(statuses: Sequence[RunStatus]) -> str:
    counts = Counter(status.state.name for status in statuses)
    return f"{len(statuses)} runs: {', '.join(f'{count} {name}' for name, count in counts.most_common())}"


def _progress(cell: Mapping[str, Any]) -> str:
    """Return `<last logged step>/<steps>`; of a trial that was refused, the steps of its epochs are not known."""
    num_steps = "?" if cell["steps"] is None else cell["steps"]
    return f"{_last_step(Path(cell['folder']) / 'metrics.jsonl')}/{num_steps}"


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


def _truncate(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"
