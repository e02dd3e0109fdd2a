"""Recognising that a device ran out of memory, and giving back what a failed attempt left."""

import gc
import re

import torch

from bbu_train.errors import InputError

MESSAGES = re.compile(r"(?<!worker is )\bout of memory\b|STATUS_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED", re.IGNORECASE)
"""What CUDA, Triton and NCCL say ("out of memory"), cuBLAS, cuSOLVER and cuSPARSE, and cuDNN 9: in RuntimeErrors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that a device has no memory left.

    Only torch's allocator raises `torch.OutOfMemoryError`. The libraries raise plain RuntimeErrors, and torch.compile
    wraps those of its compilers. An error of the user's data and config, and the host's MemoryError, end the search.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while isinstance(cause, Exception) and not isinstance(cause, InputError | MemoryError) and id(cause) not in seen:
        if isinstance(cause, torch.OutOfMemoryError) or isinstance(cause, RuntimeError) and MESSAGES.search(str(cause)):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def release() -> None:
    """Free what a failed attempt left on the device. The caller has left its `except`: a traceback holds activations.

    The collector finds all garbage of a step, although `train` froze it: what was frozen is older than every step.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
