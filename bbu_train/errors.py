"""The one error that is the user's to mend; it imports nothing, so that the command line can catch it cheaply."""

from collections.abc import Sequence


class InputError(ValueError):
    """The data, the config or the command is wrong: says what was found, where, what was expected and what to do.

    The command line prints its message without a traceback and exits with 2. Every other exception is a defect of
    the program: it keeps its traceback and exits with 1.
    """


def all_problems(what: str, problems: Sequence[str], remedy: str, shown: int = 50) -> InputError:
    """One error that lists every problem of a file or a data set, one a line (the first `shown` of them)."""
    lines = [f"  {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return InputError("\n".join([f"{what}: {count}.", *lines, remedy]))
