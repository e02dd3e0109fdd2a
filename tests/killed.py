"""A process that kills itself in the middle of its work, at a chosen call."""

import os
import signal
from importlib import import_module
from typing import Any


def kill_at_call(module: str, name: str, number: int) -> None:
    """Let this process end by SIGKILL when the function `name` of `module` is called for the `number`th time."""
    owner = import_module(module)
    function, calls = getattr(owner, name), []

    def kill_or_call(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, kill_or_call)
