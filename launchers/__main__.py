"""`python -m launchers status|resume|cancel|retry <sweep>`: look after a sweep that was started before."""

import argparse
import difflib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bbu_train.cli import main as command_line
from bbu_train.errors import InputError, Preempted
from launchers import jobs
from launchers import status as survey
from launchers.launch import show, start
from launchers.ledger import OPEN, Entry, Ledger, locked
from launchers.search import start as search
from launchers.search.trials import recorded

CANCEL_SECONDS = 60  # SLURM kills what has not ended on its own after KillWait, 30 s by default


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m launchers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, says in COMMANDS.items():
        command = commands.add_parser(name, help=says, description=says)
        command.add_argument("sweep", help="its name, or its folder: outputs/<sweep>")
        if name == "retry":
            command.add_argument("--failed", action="store_true", required=True, help="those that failed")
    asked = parser.parse_args(arguments)
    try:
        ledger = find(asked.sweep)
        return {"status": status, "resume": resume, "cancel": cancel, "retry": retry}[asked.command](ledger)
    except (InputError, Preempted) as error:
        return command_line.report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


COMMANDS = {
    "status": "show every run: its state, its job, how far it is, and why it failed",
    "resume": "submit the runs that ended early, are lost, cancelled or were never submitted; not those that failed",
    "cancel": "end every job of the sweep, queued or running; resume goes on where they were saved",
    "retry": "submit those that failed again",
}


def find(sweep: str) -> Ledger:
    """The ledger of a sweep that is named, or whose folder is given."""
    outputs = Path(os.environ.get("BBU_OUTPUTS", "outputs"))
    for folder in (outputs / sweep, Path(sweep)):
        if (folder / "ledger").is_dir():
            return Ledger((folder / "ledger").absolute())
    known = sorted(path.parent.name for path in outputs.glob("*/ledger"))
    near = difflib.get_close_matches(sweep, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Sweeps there: {', '.join(known) or 'none'}."
    raise InputError(f"{outputs.absolute()} has no sweep {sweep} that a launcher started. {hint}")


def status(ledger: Ledger) -> int:
    found = survey.rows(ledger)
    print(survey.table(ledger, found))
    if ledger.search.is_search:
        print(search.line(ledger))
        found.append(survey.RunStatus(ledger.search, ledger.search.state(jobs.seen())))
    if why := survey.reasons(found, ("failed", "lost", "cancelled", "preempted", "pruned")):
        print(f"\n{why}")
    return 0


def resume(ledger: Ledger) -> int:
    if not ledger.search.is_search:
        return start(ledger, [entry.run for entry in ledger.entries()], OPEN)
    drawn = {entry.run for entry, _ in recorded(ledger)}
    if others := [entry.run for entry in ledger.entries() if entry.run not in drawn]:
        start(ledger, others, OPEN)
    return search.resume(ledger)


def retry(ledger: Ledger) -> int:
    return start(ledger, [entry.run for entry in ledger.entries()], ("failed",))


def cancel(ledger: Ledger) -> int:
    """End a search first, which could start another run, then all runs, and stay until they are gone."""
    if ledger.search.is_search:
        _end(ledger, [ledger.search])
    _end(ledger, ledger.entries())
    return show(ledger, None)


def _end(ledger: Ledger, entries: Sequence[Entry]) -> None:
    """Mark first, so that no job queues itself again or begins; say which cannot be reached from here."""
    with locked(ledger.folder):
        job_state = jobs.seen()
        for entry in entries:
            if entry.state(job_state).in_hand:
                newest = entry.newest()
                assert newest is not None
                newest.write("cancelled", reason="cancelled by hand")
                if not (state := entry.state(job_state)).is_seen:
                    print(f"{entry.run}: {state.job} cannot be reached from here. If it is still there, end it there.")
    end = time.monotonic() + CANCEL_SECONDS
    while living := _living(entries):
        if time.monotonic() > end:
            raise InputError(f"Still there after {CANCEL_SECONDS} s: {', '.join(living)}. See scontrol show job.")
        jobs.cancel(living)
        time.sleep(1)


def _living(entries: Sequence[Entry]) -> list[str]:
    job_state = jobs.seen()
    newest = [entry.newest() for entry in entries]
    return [attempt.job for attempt in newest if attempt and attempt.job and job_state(attempt.job) in jobs.LIVE]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
