"""A process that kills itself in the middle of its work, at a chosen call."""

import os
import signal
from pkgutil import resolve_name
from typing import Any


def kill_at_call(owner_name: str, name: str, number: int) -> None:
    """Let this process end by SIGKILL at call `number`, from 1, of the function `name` of a module or a class."""
    owner = resolve_name(owner_name)
    function, calls = getattr(owner, name), []

    def kill_or_call(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, kill_or_call)
