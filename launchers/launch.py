"""What `python -m bbu_train -m ...` does: compose the sweep, check it, record it in the ledger, start it."""

import json
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

from hydra.utils import instantiate

from bbu_train.errors import INTERRUPTED, InputError, all_problems
from bbu_train.runtime import preemption
from launchers import ranks
from launchers.cells import Cell, compose, notes, warmup_conflicts
from launchers.ledger import RESTARTABLE, Ledger
from launchers.lock import locked
from launchers.preflight import estimate
from launchers.preflight.check import check_cells, with_steps
from launchers.protocol import Launcher
from launchers.search.command import read_search_command
from launchers.search.start import launch_search
from launchers.status import read_statuses
from launchers.watch import show_runs, watch_runs

ENDED_BY_SIGNAL = os.EX_TEMPFAIL, INTERRUPTED


def launch(arguments: Sequence[str], folder: Path, only_checks: bool = False) -> int:
    """Start the runs whose state is in `ledger.RESTARTABLE`, and return the exit code.

    `only_checks` checks the sweep and starts nothing.

    The same command again resumes the sweep. Failed runs need `launchers retry --failed`.
    """
    preemption.uninstall()
    if (search := read_search_command(arguments, folder)) is not None:
        _refuse_torchrun()
        if only_checks:
            raise InputError("--check: a search draws its cells as it goes. Check one of them without -m.")
        return launch_search(search, arguments)
    cells = compose(arguments, folder)
    if only_checks:
        _refuse_torchrun()
        _check(cells)
        return 0
    launcher: Launcher = instantiate(cells[0].cfg.launchers, _convert_="all")
    _install_signal_handlers([launcher])
    if not launcher.works_under_torchrun:
        _refuse_torchrun()
    ledger = Ledger(Path(cells[0].cfg.folder).parent / "ledger")
    launcher.check(ledger)
    runs = ranks.decide_on_main(partial(_check_and_record, ledger, cells))
    return start_runs(ledger, runs, RESTARTABLE)


def start_runs(ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
    """Start those of `runs` that are in one of `states`, each with its own config's launcher; return the exit code.

    No further run starts after a signal has asked the sweep to end.
    """
    runs_by_launcher: dict[str, list[str]] = {}
    for status in ranks.decide_on_main(partial(read_statuses, ledger, runs)):
        config = json.dumps(status.entry.cell["launcher"], sort_keys=True)
        startable = runs_by_launcher.setdefault(config, [])
        if status.can_start(states):
            startable.append(status.entry.run)
    launchers: dict[str, Launcher] = {
        config: instantiate(json.loads(config), _convert_="all") for config in runs_by_launcher
    }
    _install_signal_handlers(launchers.values())
    code = 0
    for config, startable in runs_by_launcher.items():
        if startable and code not in ENDED_BY_SIGNAL:
            code = max(code, launchers[config].start(ledger, startable, states))
    if not ranks.is_main():
        return code
    if code in ENDED_BY_SIGNAL:
        print("The sweep ends here. The same command continues it.", file=sys.stderr, flush=True)
    elif any(launcher.wait for launcher in launchers.values()):
        return max(code, watch_runs(ledger, runs))
    show_runs(ledger, runs)
    return code


def _check_and_record(ledger: Ledger, cells: Sequence[Cell]) -> list[str]:
    """Check the whole sweep, print what it will take, and write it to the ledger; return the names of its runs."""
    cells = _check(cells)
    with locked(ledger.folder):
        return [entry.run for entry in ledger.add(cells)]


def _check(cells: Sequence[Cell]) -> list[Cell]:
    """Check the whole sweep and print what it will take. Return the cells, each with its number of steps."""
    preemption.end_sweep_if_asked()
    known = estimate.from_finished_runs(cells)
    known_steps: dict[str, int] = {}
    requirements = check_cells(cells, estimate.group_without_estimate(cells, known), known_steps)
    cells = [with_steps(cell, known_steps) for cell in cells]
    if problems := [*warmup_conflicts(cells)]:
        raise all_problems("The sweep", problems, "Nothing was started.")
    estimates = [
        estimated or estimate.from_requirements(cell, **requirements[number])
        for number, (cell, estimated) in enumerate(zip(cells, known, strict=True))
    ]
    preemption.end_sweep_if_asked()
    print("\n".join([*notes(cells), estimate.format_estimates(cells, estimates)]), flush=True)
    return cells


def _install_signal_handlers(launchers: Iterable[Launcher]) -> None:
    if any(launcher.handles_signals for launcher in launchers):
        preemption.install()


def _refuse_torchrun() -> None:
    if ranks.are_several():
        raise InputError(
            "torchrun starts the processes of one run, and a launcher those of a sweep. Leave out one of them."
        )
