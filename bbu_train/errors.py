"""The errors that the command line tells apart. This module imports nothing heavy, so that anyone may catch them."""

import os
from collections.abc import Sequence

INTERRUPTED = 128 + 2
"""The exit code of a program that Ctrl-C (SIGINT, signal 2) ended."""


class InputError(ValueError):
    """The user's data, config or command is wrong: the message says what, where, what was expected and what to do.

    The command line prints it without a traceback and exits with 2. Any other exception is a defect of the program: it
    keeps its traceback, and the command exits with 1.
    """


class Preempted(Exception):
    """A signal ended the run at a point from which it can go on: nothing failed and nothing is lost.

    `step` is the last step, which is saved; at 0 there was nothing to save. `signal` is the signal's name, `folder` the
    run's folder, which may not exist yet. `go_on` has the overrides of this command that going on needs again.
    """

    def __init__(self, step: int, signal: str, folder: str, go_on: Sequence[str] = ()):
        where = f"after step {step}, which is saved" if step else "before its first step"
        super().__init__(f"{signal} ended the run {where}.")
        self.step = step
        self.signal = signal
        self.folder = folder
        self.go_on = go_on

    @property
    def exit_code(self) -> int:
        """75: try again. Whoever pressed Ctrl-C does not want that."""
        return INTERRUPTED if self.signal == "SIGINT" else os.EX_TEMPFAIL


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended the run at once, after `step`. `saved_at` is the step of its newest checkpoint, 0 without one."""

    def __init__(self, step: int, saved_at: int, folder: str, go_on: Sequence[str]):
        saved = f"the newest checkpoint is that of step {saved_at}" if saved_at else "no step is saved"
        super().__init__(f"Interrupted after step {step}; {saved}.")
        self.folder = folder
        self.go_on = go_on


class SweepPreempted(Preempted):
    """A signal ended a sweep or a search: it starts no further run, and the same command goes on with it."""

    def __init__(self, signal: str):
        Exception.__init__(self, f"{signal} ended the sweep: it starts no further run.")
        self.step = 0
        self.signal = signal


def all_problems(what: str, problems: Sequence[str], remedy: str, max_shown: int = 50) -> InputError:
    """Return one error that lists every problem of a file, a data set or a command, one a line."""
    lines = [f"  {problem}" for problem in problems[:max_shown]]
    if len(problems) > max_shown:
        lines.append(f"  ... and {len(problems) - max_shown} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return InputError("\n".join([f"{what}: {count}.", *lines, remedy]))
