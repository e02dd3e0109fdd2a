"""The errors that the command line tells apart; this imports nothing, so that it can catch them cheaply."""

from collections.abc import Sequence


class InputError(ValueError):
    """The data, the config or the command is wrong: says what was found, where, what was expected and what to do.

    The command line prints its message without a traceback and exits with 2. Every other exception is a defect of
    the program: it keeps its traceback and exits with 1.
    """


class Preempted(Exception):
    """A signal asked the run to end, and it did so where it can go on: nothing failed and nothing is lost.

    `step` is the last one, and saved; at 0 there was nothing to save. `signal` is the name of what came, `folder` the
    run's, which may not exist yet.
    """

    def __init__(self, step: int, signal: str, folder: str):
        where = f"after step {step}, which is saved" if step else "before its first step"
        super().__init__(f"{signal} asked the run to end, and it did, {where}.")
        self.step = step
        self.signal = signal
        self.folder = folder


class SweepPreempted(Preempted):
    """The same of a sweep or a search: it starts no further run, and the same command goes on with it."""

    def __init__(self, signal: str):
        Exception.__init__(self, f"{signal} asked the sweep to end: it starts no further run.")
        self.step = 0
        self.signal = signal


def all_problems(what: str, problems: Sequence[str], remedy: str, shown: int = 50) -> InputError:
    """One error that lists every problem of a file or a data set, one a line (the first `shown` of them)."""
    lines = [f"  {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return InputError("\n".join([f"{what}: {count}.", *lines, remedy]))
