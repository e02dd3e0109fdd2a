"""The heap of a process that runs tests or is forked for them."""

import gc


def freeze_heap() -> None:
    """Exclude all that was imported so far from garbage collection, for good.

    A run collects twice, and a collection of some million objects takes a second. `gc.unfreeze`, which a run calls at
    its end, does nothing from now on.
    """
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None
