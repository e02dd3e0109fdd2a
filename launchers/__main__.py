"""`python -m launchers status|resume|cancel|retry <sweep>`: look after a sweep that was started before."""

import argparse
import difflib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bbu_train.cli.main import report_error, report_interrupt
from bbu_train.errors import INTERRUPTED, InputError, Preempted, listed
from bbu_train.runs.names import folder_name
from launchers import job_states
from launchers.launch import start_runs
from launchers.ledger import RESTARTABLE, Entry, Ledger
from launchers.lock import locked
from launchers.search.start import format_progress, resume_search
from launchers.search.trials import read_trials
from launchers.status import RunStatus, format_reasons, format_table, read_statuses
from launchers.watch import show_runs

CANCEL_TIMEOUT_SECONDS = 60  # SLURM kills jobs that do not end by themselves after KillWait, 30 s by default
CANCEL_POLL_SECONDS = 1  # between signals to the jobs that are still there
COMMANDS = {
    "status": "show every run: its state, its job, its last step, and why it failed",
    "resume": "submit the runs that are preempted, lost, cancelled or were never submitted; not those that failed",
    "cancel": "end every job of the sweep, queued or running; resume continues from their checkpoints",
    "retry": "submit the failed runs again",
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m launchers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("sweep", help="the sweep's name, or its folder: outputs/<sweep>")
        if name == "retry":
            command.add_argument("--failed", action="store_true", required=True, help="the runs that failed")
    options = parser.parse_args(arguments)
    functions = {"status": status, "resume": resume, "cancel": cancel, "retry": retry}
    try:
        return functions[options.command](find_ledger(options.sweep))
    except (InputError, Preempted) as error:
        return report_error(error)
    except KeyboardInterrupt as error:
        report_interrupt(error)
        return INTERRUPTED


def find_ledger(sweep: str) -> Ledger:
    """Return the ledger of a sweep, given its name or its folder."""
    outputs = Path(os.environ.get("BBU_OUTPUTS", "outputs"))
    named = [] if "/" in sweep else [outputs / folder_name(sweep)]
    for folder in (*named, Path(sweep)):
        if (folder / "ledger").is_dir():
            return Ledger((folder / "ledger").absolute())
    known = sorted(path.parent.name for path in outputs.glob("*/ledger"))
    near = difflib.get_close_matches(sweep, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Its sweeps: {listed(known) or 'none'}."
    raise InputError(f"{outputs.absolute()} has no sweep {sweep} that a launcher started. {hint}")


def status(ledger: Ledger) -> int:
    statuses = read_statuses(ledger)
    print(format_table(ledger, statuses))
    if ledger.search.is_search:
        print(format_progress(ledger))
        statuses.append(RunStatus(ledger.search, ledger.search.state(job_states.lookup())))
    if reasons := format_reasons(statuses, ("failed", "lost", "cancelled", "preempted", "pruned")):
        print(f"\n{reasons}")
    return 0


def resume(ledger: Ledger) -> int:
    """Start the runs that can be restarted.

    In a sweep with a search, first start the runs that are not trials, then the controller, which starts the trials.
    """
    runs = [entry.run for entry in ledger.entries()]
    if not ledger.search.is_search:
        return start_runs(ledger, runs, RESTARTABLE)
    trials = {entry.run for entry, _ in read_trials(ledger)}
    if others := [run for run in runs if run not in trials]:
        start_runs(ledger, others, RESTARTABLE)
    return resume_search(ledger)


def retry(ledger: Ledger) -> int:
    return start_runs(ledger, [entry.run for entry in ledger.entries()], ("failed",))


def cancel(ledger: Ledger) -> int:
    """End the search first, as it could start another run, then all runs; return when their jobs are gone."""
    if ledger.search.is_search:
        _end_jobs(ledger, [ledger.search])
    _end_jobs(ledger, ledger.entries())
    return show_runs(ledger, None)


def _end_jobs(ledger: Ledger, entries: Sequence[Entry]) -> None:
    """End the live jobs of these entries and wait until they are gone. Print which jobs this host cannot reach.

    The attempts are marked as cancelled first, so that no job requeues itself or begins meanwhile.
    """
    with locked(ledger.folder):
        job_state = job_states.lookup()
        for entry in entries:
            if entry.state(job_state).has_live_job:
                attempt = entry.newest_attempt()
                assert attempt is not None
                attempt.write("cancelled", reason="cancelled by hand")
                if not (state := entry.state(job_state)).is_job_visible:
                    print(f"{entry.run}: {state.job} cannot be reached from here. If it still runs, end it there.")
    deadline = time.monotonic() + CANCEL_TIMEOUT_SECONDS
    while active := _active_jobs(entries):
        if time.monotonic() > deadline:
            raise InputError(f"Still there after {CANCEL_TIMEOUT_SECONDS} s: {listed(active)}. See scontrol show job.")
        job_states.cancel(active)
        time.sleep(CANCEL_POLL_SECONDS)


def _active_jobs(entries: Sequence[Entry]) -> list[str]:
    job_state = job_states.lookup()
    attempts = [entry.newest_attempt() for entry in entries]
    return [
        attempt.job for attempt in attempts if attempt and attempt.job and job_state(attempt.job) in job_states.ACTIVE
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
