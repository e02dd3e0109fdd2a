"""What `python -m bbu_train -m ...` does: compose the sweep, check it, write it down, start it."""

import json
import os
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

from hydra.utils import instantiate

from bbu_train.errors import InputError
from bbu_train.runtime import preemption
from launchers import jobs, ranks, status
from launchers.cells import Cell, compose
from launchers.here import Here
from launchers.ledger import OPEN, Ledger, locked
from launchers.local import Local
from launchers.preflight import check as preflight
from launchers.preflight import estimate
from launchers.search import command as search_command
from launchers.search import start as search

POLL_SECONDS = 5  # between tables of a command that waits


def launch(arguments: Sequence[str], folder: Path) -> int:
    """Start what is missing of the sweep; give the exit code. The same command again resumes it."""
    preemption.uninstall()
    if (searched := search_command.read(arguments, folder)) is not None:
        _refuse_torchrun()
        return search.launch(searched, arguments)
    cells = compose(arguments, folder)
    launcher = instantiate(cells[0].cfg.launchers, _convert_="all")
    _obey_signals([launcher])
    if not isinstance(launcher, Here):
        _refuse_torchrun()
    ledger = Ledger(Path(cells[0].cfg.folder).parent / "ledger")
    return start(ledger, ranks.agreed(partial(_written_down, ledger, cells)), OPEN)


def _obey_signals(launchers: Iterable[object]) -> None:
    """Where a launcher makes runs in this process, or in children of it, a signal ends these first."""
    if any(isinstance(launcher, Here | Local) for launcher in launchers):
        preemption.install()


def _refuse_torchrun() -> None:
    if ranks.are_several():
        raise InputError(
            "torchrun starts processes of one run, and a launcher those of a sweep. Leave out one of them."
        )


def _written_down(ledger: Ledger, cells: Sequence[Cell]) -> list[str]:
    """The runs of the sweep, when all of it has been found to be in order, or an error."""
    preemption.end_sweep_if_asked()
    needs = estimate.measured(cells)
    found = preflight.check(cells, estimate.unmeasured(cells, needs))
    needs = [need or estimate.computed(cells[number], **found[number]) for number, need in enumerate(needs)]
    preemption.end_sweep_if_asked()
    print(estimate.report(cells, needs), flush=True)
    with locked(ledger.folder):
        return [entry.run for entry in ledger.add(cells)]


def start(ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
    """Start those of the runs that are in one of these states, each with the launcher of its own config, until a signal
    ends the sweep."""
    runs_of: dict[str, list[str]] = {}
    for row in ranks.agreed(partial(status.rows, ledger, runs)):
        its = runs_of.setdefault(json.dumps(row.entry.cell["launcher"], sort_keys=True), [])
        if row.may_start(states):
            its.append(row.entry.run)
    launchers = {text: instantiate(json.loads(text), _convert_="all") for text in runs_of}
    _obey_signals(launchers.values())
    code = 0
    for text, its in runs_of.items():
        if its and code != os.EX_TEMPFAIL:
            code = max(code, launchers[text].start(ledger, its, states))
    if ranks.is_first() and code == os.EX_TEMPFAIL:
        print("The sweep ends here. The same command goes on with it.", file=sys.stderr, flush=True)
    elif ranks.is_first() and any(launcher.wait for launcher in launchers.values()):
        return max(code, watch(ledger, runs))
    if ranks.is_first():
        show(ledger, runs)
    return code


def show(ledger: Ledger, runs: Sequence[str] | None) -> int:
    """Print the table."""
    print(status.table(ledger, status.rows(ledger, runs)))
    print(f"To see how they get on: python -m launchers status {ledger.folder.parent}", flush=True)
    return 0


def watch(ledger: Ledger, runs: Sequence[str]) -> int:
    """Show the table until no run has a job left that can be seen; 1 unless all are done, else 0.

    A terminal is drawn anew; a file gets a table when it changes. Ctrl-C or a signal ends the looking and no run.
    """
    shown, patience = None, jobs.Patience()
    try:
        while True:
            with patience:
                found = status.rows(ledger, runs)
                text = status.table(ledger, found)
                if text != shown:
                    print("\033[2J\033[H" * sys.stdout.isatty() + text, flush=True)
                    shown = text
                if not any(row.state.may_change for row in found):
                    return int(any(row.state.name != "done" for row in found))
            preemption.end_sweep_if_asked()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        end = f"python -m launchers cancel {ledger.folder.parent}"
        print(f"\nNo longer looking; the runs go on. To end them: {end}", file=sys.stderr)
        raise
