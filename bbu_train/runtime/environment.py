"""Environment variables that libraries read when they are imported, unless the user has set them."""

import os
import sys


def set_defaults() -> None:
    """Let the GPU allocator grow its segments, idle CPU threads sleep, and no progress bar fill a log file.

    Call this before torch and transformers are imported.

    Lengths differ from step to step: without expandable segments the allocator keeps blocks of every size. Threads that
    wait by spinning take the cores from other processes, and the run then slows down by far more than its share.
    """
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # the newer name of the same variable
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of transformers too
