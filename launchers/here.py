"""Runs one after the other in this process, or in those of torchrun together."""

import os
import sys
from collections.abc import Collection, Sequence
from functools import partial

from bbu_train.cli import main as command_line
from launchers import jobs, ranks, status
from launchers.job import Job
from launchers.ledger import Attempt, Entry, Ledger, locked


class Here:
    """A run that fails is said at once, and the next one begins; a signal ends the sweep."""

    wait = True  # its runs have ended when `start` returns, but others may be at work on the same sweep

    def start(self, ledger: Ledger, runs: Sequence[str], states: Collection[str]) -> int:
        """Run those that are in one of these states when it is their turn; give the exit code of the first to fail."""
        code = 0
        for run in runs:
            attempt = ranks.agreed(partial(_claimed, ledger, run, states))
            if attempt is None:
                continue
            try:
                preempted = Job(str(attempt.folder))()
            except Exception as error:
                overrides = Entry(attempt.entry_folder).cell["overrides"]
                print(f"{' '.join(text for text in overrides if not text.startswith('hydra/'))}:", file=sys.stderr)
                ended = command_line.report(error)
                code = code or ended
            else:
                if preempted is not None:
                    if ranks.is_first():
                        print(preempted, file=sys.stderr)
                    return os.EX_TEMPFAIL
        return code


def _claimed(ledger: Ledger, run: str, states: Collection[str]) -> Attempt | None:
    with locked(ledger.folder):
        (row,) = status.rows(ledger, [run])
        if not row.may_start(states):
            return None
        attempt = row.entry.claim()
        attempt.write("job", job=jobs.this_process())
        return attempt
