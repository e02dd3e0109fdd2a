"""Printing the table of a sweep, once or until its last job has ended."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bbu_train.runtime import preemption
from launchers.job_states import RetryTransient
from launchers.ledger import Ledger, State
from launchers.status import format_table, read_statuses

POLL_SECONDS = 5
CLEAR_SCREEN = "\033[2J\033[H"


@dataclass(frozen=True)
class Snapshot:
    """What a sweep looks like now: its table, the states that can still change, and the exit code if none can."""

    table: str
    states: Sequence[State]
    exit_code: int


def watch(take_snapshot: Callable[[], Snapshot]) -> int:
    """Print the table whenever it changes, until no state can change; return the exit code.

    A terminal is cleared before each table. Raises SweepPreempted when a signal asks this process to end.
    """
    shown, retry_transient = None, RetryTransient()
    while True:
        with retry_transient:
            snapshot = take_snapshot()
            if snapshot.table != shown:
                print((CLEAR_SCREEN if sys.stdout.isatty() else "") + snapshot.table, flush=True)
                shown = snapshot.table
            if not any(state.can_change for state in snapshot.states):
                return snapshot.exit_code
        preemption.end_sweep_if_asked()
        time.sleep(POLL_SECONDS)


def watch_runs(ledger: Ledger, runs: Sequence[str]) -> int:
    """Watch until no run has a live job that this host can see; return 0 if all are done, else 1.

    Ctrl-C or a signal ends the watching, and no run.
    """

    def take_snapshot() -> Snapshot:
        statuses = read_statuses(ledger, runs)
        states = [status.state for status in statuses]
        return Snapshot(format_table(ledger, statuses), states, int(any(state.name != "done" for state in states)))

    try:
        return watch(take_snapshot)
    except KeyboardInterrupt:
        command = f"python -m launchers cancel {ledger.folder.parent}"
        text = f"No longer watching; the runs continue. To end them: {command}"
        raise KeyboardInterrupt(text) from None


def show_runs(ledger: Ledger, runs: Sequence[str] | None) -> int:
    """Print the table of these runs, or of all, once; return exit code 0."""
    show(ledger, format_table(ledger, read_statuses(ledger, runs)))
    return 0


def show(ledger: Ledger, table: str) -> None:
    """Print a table and the command that prints it again."""
    print(table)
    print(f"To see the progress: python -m launchers status {ledger.folder.parent}", flush=True)
