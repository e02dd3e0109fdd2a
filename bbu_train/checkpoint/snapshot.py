"""Nested values whose tensors lie in memory that two processes share.

One process packs the values: it pickles them with a slot in place of each tensor, and copies the tensors to the memory.
The other one unpacks them: its tensors are views of that memory.
"""

import io
import math
import mmap
import pickle
from typing import Any

import torch
from torch import Tensor

SEGMENT_BYTES = 1 << 30
"""Memory is reserved and pinned in segments of about this size, so that other threads never wait for long."""
ALIGNMENT = 64

Slot = tuple[int, torch.dtype, tuple[int, ...]]
"""Where a tensor lies: offset in bytes, dtype, shape."""


class Packed(pickle.Pickler):
    """Nested values, pickled without the contents of their tensors.

    pickled    what `unpack` needs beside the memory
    tensors    the tensors, in order of their slots
    slots      where each of them belongs
    starts     offsets of the segments, multiples of the page size. No tensor lies in two segments: CUDA does not copy
               into two ranges of memory that were pinned one by one
    """

    def __init__(self, value: Any) -> None:
        file = io.BytesIO()
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.slots: list[Slot] = []
        self.starts = [0]
        self._end = 0
        self.dump(value)
        self.pickled = file.getvalue()

    @property
    def num_bytes(self) -> int:
        """Return the size of the memory, in whole pages and never 0."""
        return max(mmap.PAGESIZE, _round_up(self._end, mmap.PAGESIZE))

    def persistent_id(self, value: Any) -> Slot | None:
        """Give a tensor a slot, which is pickled instead of it."""
        if not isinstance(value, Tensor):
            return None
        start = _round_up(self._end, ALIGNMENT)
        if start > self.starts[-1] and start + value.nbytes > self.starts[-1] + SEGMENT_BYTES:
            start = _round_up(start, mmap.PAGESIZE)
            self.starts.append(start)
        self._end = start + value.nbytes
        self.tensors.append(value.detach())
        self.slots.append((start, value.dtype, tuple(value.shape)))
        return self.slots[-1]


class _Unpickler(pickle.Unpickler):
    def __init__(self, pickled: bytes, memory: mmap.mmap) -> None:
        super().__init__(io.BytesIO(pickled))
        self.memory = memory

    def persistent_load(self, slot: Slot) -> Tensor:
        return view(self.memory, slot)


def unpack(pickled: bytes, memory: mmap.mmap) -> Any:
    """Return the values that were packed. Their tensors are views of `memory`, each with a storage of its own."""
    return _Unpickler(pickled, memory).load()


def view(memory: mmap.mmap, slot: Slot) -> Tensor:
    """Return the tensor of a slot, which shares `memory`."""
    offset, dtype, shape = slot
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)  # an empty buffer is refused
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
