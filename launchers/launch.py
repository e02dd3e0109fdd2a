"""What `python -m bbu_train -m hydra/launcher=...` does: compose the sweep, check it, write it down, start it."""

import json
import signal
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra.utils import instantiate

from launchers import estimate, preflight, search, search_command, survey
from launchers.cells import compose
from launchers.ledger import OPEN, Ledger, locked

LOOK_SECONDS = 5  # between tables of a command that waits


def launch(arguments: Sequence[str], folder: Path) -> int:
    """Start what is missing of the sweep; give the exit code. The same command again resumes it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing trains in this process
    if (searched := search_command.read(arguments, folder)) is not None:
        return search.launch(searched, arguments)
    cells = compose(arguments, folder)
    preflight.check(cells)  # all of it, or nothing is started
    print(estimate.report(cells), flush=True)
    ledger = Ledger(Path(cells[0].cfg.folder).parent / "ledger")
    with locked(ledger.folder):
        entries = ledger.add(cells)
    return start(ledger, [entry.run for entry in entries], OPEN)


def start(ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
    """Start those of the runs that are in one of these states, each with the launcher of its own config."""
    runs_of: dict[str, list[str]] = {}
    for row in survey.rows(ledger, runs):
        its = runs_of.setdefault(json.dumps(row.entry.cell["launcher"], sort_keys=True), [])
        if row.state.name in states:
            its.append(row.entry.run)
    launchers = {text: instantiate(json.loads(text), _convert_="all") for text in runs_of}
    for text, its in runs_of.items():
        if its:
            launchers[text].start(ledger, its, states)
    waits = any(launcher.wait for launcher in launchers.values())
    return watch(ledger, runs) if waits else show(ledger, runs)


def show(ledger: Ledger, runs: Sequence[str] | None) -> int:
    """Print the table."""
    print(survey.table(ledger, survey.rows(ledger, runs)))
    print(f"To see how they get on: python -m launchers status {ledger.folder.parent}", flush=True)
    return 0


def watch(ledger: Ledger, runs: Sequence[str]) -> int:
    """Show the table until no run has a job left; 1 unless all are done, else 0.

    A terminal is drawn anew; a file gets a table when it changes.
    """
    shown = None
    while True:
        found = survey.rows(ledger, runs)
        text = survey.table(ledger, found)
        if text != shown:
            print("\033[2J\033[H" * sys.stdout.isatty() + text, flush=True)
            shown = text
        if not any(row.state.name in ("queued", "running", "preempted") for row in found):
            return int(any(row.state.name != "done" for row in found))
        time.sleep(LOOK_SECONDS)
