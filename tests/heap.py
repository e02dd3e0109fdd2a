"""The heap of a process that runs tests or is forked for them."""

import gc


def freeze_heap() -> None:
    """Keep the garbage collector from scanning all that was imported again and again, also after a run in this process.

    A run collects twice, and a collection of some million objects takes a second.
    """
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None
