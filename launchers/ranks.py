"""The processes of torchrun in a sweep whose runs they train together. Torch is imported only if there are several."""

import os
from collections.abc import Callable
from typing import TypeVar

from bbu_train.cli.main import exit_code
from bbu_train.errors import Preempted

Decision = TypeVar("Decision")


def are_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def decide_on_main(decide: Callable[[], Decision]) -> Decision:
    """Call `decide` on rank 0 and return its result on every rank; the other ranks wait.

    If it raises, rank 0 raises that error, and the others exit with the error's exit code and print nothing.
    """
    if not are_several():
        return decide()
    from bbu_train.runtime import distributed

    distributed.start()
    try:
        if not is_main():
            decision, code = distributed.broadcast_from_main(None)
            if code:
                raise SystemExit(code)
            return decision
        try:
            decision = decide()
        except (Exception, Preempted) as error:
            distributed.broadcast_from_main((None, exit_code(error)))
            raise
        return distributed.broadcast_from_main((decision, 0))[0]
    finally:
        distributed.finish()
