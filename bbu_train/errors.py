"""The errors that the command line tells apart. This module imports nothing heavy, so that anyone may catch them."""

import os
from collections.abc import Iterable, Sequence

INTERRUPTED = 128 + 2
"""The exit code of a program that Ctrl-C (SIGINT, signal 2) ended."""


class InputError(ValueError):
    """The user's data, config or command is wrong. The message says what is wrong, where, what was expected, and what
    to do.

    The command line prints it without a traceback and exits with 2. Any other Exception is a defect of the program: the
    command line prints its traceback and exits with 1.
    """


class Preempted(BaseException):
    """A signal ended the run at a point from which it can be resumed: nothing failed and nothing is lost.

    step       the last step, which is saved; 0: no step was made
    signal     the name of the signal
    folder     that of the run, which may not exist yet; None: it is not known yet
    overrides  those of this command that the command which resumes the run must repeat

    It is no Exception, as KeyboardInterrupt is none: code that handles any Exception of its own must not handle this.
    """

    def __init__(self, step: int, signal: str, folder: str | None, overrides: Sequence[str] = ()):
        where = f"after step {step}, which is saved" if step else "before its first step: nothing was trained"
        super().__init__(f"{_shown(signal)} ended the run {where}.")
        self.step = step
        self.signal = signal
        self.folder = folder
        self.overrides = overrides

    @property
    def exit_code(self) -> int:
        """75: try again. Whoever pressed Ctrl-C does not want that."""
        return INTERRUPTED if self.signal == "SIGINT" else os.EX_TEMPFAIL


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended the run at once, after `step`. `saved_at` is the step of its newest checkpoint, 0 without one.

    `folder` and `overrides` are those of `Preempted`.
    """

    def __init__(self, step: int, saved_at: int, folder: str, overrides: Sequence[str]):
        where = f"after step {step}" if step else "before the first step"
        saved = f"the newest checkpoint is that of step {saved_at}" if saved_at else "no step is saved"
        super().__init__(f"Interrupted {where}; {saved if step else 'nothing was trained'}.")
        self.folder = folder
        self.overrides = overrides


class SweepPreempted(Preempted):
    """A signal ended a sweep or a search, which the same command resumes. `outcome` says what became of its runs."""

    def __init__(self, signal: str, outcome: str = "it starts no further run"):
        BaseException.__init__(self, f"{_shown(signal)} ended the sweep: {outcome}.")
        self.step = 0
        self.signal = signal


def _shown(signal: str) -> str:
    return "Ctrl-C" if signal == "SIGINT" else signal


MAX_SHOWN = 10
"""Problems of a kind that a message lists; it counts the others."""
MAX_LINES = 34
"""Lines of all problems of a message, so that it fits on a screen with its first line and its remedy."""
MAX_NAME = 60
"""Characters of a name in a list."""
MAX_CHARACTERS = 300
"""Characters of a line that names a problem. Longer ones lose their middle: place and remedy are at the ends."""


def all_problems(what: str, problems: Sequence[str], remedy: str, kinds: Sequence[str] = ()) -> InputError:
    """Return one error that lists the problems of a file, a data set or a command, and counts what it leaves out.

    `kinds` has the kind of each problem. Of each kind the first MAX_SHOWN are listed, or fewer if there are many kinds.
    Without `kinds` all problems are of one kind. A problem may have several lines.
    """
    groups: dict[str, list[str]] = {}
    for kind, problem in zip(kinds or [""] * len(problems), problems, strict=True):
        groups.setdefault(kind, []).append(problem)
    sizes = [len(group) for group in groups.values()]
    fitting = (n for n in range(MAX_SHOWN, 1, -1) if sum(min(size, n) + (size > n) for size in sizes) <= MAX_LINES)
    num_shown = next(fitting, 1)
    lines: list[str] = []
    for number, (kind, group) in enumerate(groups.items()):
        own = _lines_of(group, kind, num_shown)
        if lines and len(lines) + len(own) > MAX_LINES:
            left = list(groups.values())[number:]
            lines.append(f"  ... and {sum(map(len, left))} more of {len(left)} other kinds")
            break
        lines += own
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return InputError("\n".join([f"{shorten(what)}: {count}.", *lines, remedy]))


def _lines_of(problems: Sequence[str], kind: str, num_shown: int) -> list[str]:
    """Return the lines of the first problems of a kind, and one that counts the others."""
    lines: list[str] = []
    for number, problem in enumerate(problems):
        own = [f"  {shorten(line)}" for line in problem.split("\n")]
        if number == num_shown or (lines and len(lines) + len(own) >= MAX_LINES):
            left = len(problems) - number
            return [*lines, f"  ... and {left} more{f' of this kind: {kind}' if kind else ''}"]
        lines += own if len(own) <= MAX_LINES else [*own[: MAX_LINES - 2], "    ...", own[-1]]
    return lines


def shorten(line: str) -> str:
    """Return a line without its middle if it is longer than MAX_CHARACTERS."""
    if len(line) <= MAX_CHARACTERS:
        return line
    half = (MAX_CHARACTERS - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def listed(names: Iterable[object], max_shown: int = MAX_SHOWN) -> str:
    """Return names separated by commas: the first ones, each cut if it is long, and how many more there are."""
    texts = [text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 3]}..." for text in map(str, names)]
    more = f" and {len(texts) - max_shown} more" if len(texts) > max_shown else ""
    return f"{', '.join(texts[:max_shown])}{more}"
