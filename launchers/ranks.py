"""The processes that torchrun started, in a sweep whose runs they make together. Torch is imported for them only."""

import os
from collections.abc import Callable
from typing import TypeVar

Decision = TypeVar("Decision")


def are_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def agreed(decide: Callable[[], Decision]) -> Decision:
    """What the first process decides, in all of them; the others wait for it."""
    if not are_several():
        return decide()
    from bbu_train import distributed

    distributed.start()
    try:
        return distributed.from_main(decide() if is_first() else None)
    finally:
        distributed.finish()
