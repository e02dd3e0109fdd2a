"""The processes that torchrun started, in a sweep whose runs they make together. Torch is imported for them only."""

import os
from collections.abc import Callable
from typing import TypeVar

from bbu_train.cli.main import exit_code

Decision = TypeVar("Decision")


def are_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def agreed(decide: Callable[[], Decision]) -> Decision:
    """What the first process decides, in all of them; the others wait for it. Where it fails, it alone says why, and
    all leave with the exit code of its error."""
    if not are_several():
        return decide()
    from bbu_train.runtime import distributed

    distributed.start()
    try:
        if not is_first():
            decision, code = distributed.broadcast_from_main(None)
            if code:
                raise SystemExit(code)
            return decision
        try:
            decision = decide()
        except Exception as error:
            distributed.broadcast_from_main((None, exit_code(error)))
            raise
        return distributed.broadcast_from_main((decision, 0))[0]
    finally:
        distributed.finish()
