"""Environment variables that libraries read when they are imported: set before torch, unless the user has set them."""

import os


def set_defaults() -> None:
    """Let the GPU allocator grow its segments, and idle CPU threads sleep. Call this before torch is imported.

    Lengths differ from step to step: without expandable segments the allocator keeps blocks of every size. Threads that
    wait by spinning take the cores from other processes, and the run then slows down by far more than its share.
    """
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # the newer name of the same variable
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
