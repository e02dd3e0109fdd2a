"""The launcher that trains runs one after the other in this process, or in all processes of torchrun together."""

import sys
from collections.abc import Collection, Sequence
from functools import partial

from bbu_train.cli import main as command_line
from launchers import job_states, ranks
from launchers.job import Job
from launchers.ledger import Attempt, Entry, Ledger
from launchers.lock import locked
from launchers.status import read_statuses


class Here:
    """A run that fails is reported at once, and the next one starts. A signal ends the sweep."""

    wait = True  # its own runs have ended when `start` returns, but other commands may work on the same sweep
    can_search = False
    handles_signals = True
    works_under_torchrun = True

    def check(self, ledger: Ledger) -> None:
        """Any ledger will do."""

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        """Train `runs` in order, and return the exit code: 1 if a run failed.

        A run is skipped if, when its turn comes, its state is not one of `states`, because another command has started
        it.
        """
        code = 0
        for run in runs:
            attempt = ranks.decide_on_main(partial(_claim, ledger, run, states))
            if attempt is None:
                continue
            try:
                preempted = Job(str(attempt.folder))()
            except KeyboardInterrupt as error:
                text = str(error) or "Interrupted before the first step; nothing was trained."
                raise KeyboardInterrupt(f"{_name(attempt)}: {text} The same command resumes the sweep.") from None
            except Exception as error:
                print(f"{_name(attempt)}:", file=sys.stderr)
                command_line.report_error(error)
                code = 1
            else:
                if preempted is not None:
                    if ranks.is_main():
                        print(f"{_name(attempt)}: {preempted}", file=sys.stderr)
                    return preempted.exit_code
        return code


def _name(attempt: Attempt) -> str:
    """Return the overrides of a run, by which its user knows it."""
    overrides = Entry(attempt.entry_folder).cell["overrides"]
    return " ".join(text for text in overrides if not text.startswith("hydra/"))


def _claim(ledger: Ledger, run: str, states: Collection[str]) -> Attempt | None:
    """Return a new attempt at the run that belongs to this process, or None if its state is not one of `states`."""
    with locked(ledger.folder):
        (status,) = read_statuses(ledger, [run])
        if not status.can_start(states):
            return None
        attempt = status.entry.add_attempt()
        attempt.write("job", job=job_states.local_job_id())
        return attempt
