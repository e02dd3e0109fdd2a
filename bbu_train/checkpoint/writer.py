"""The process that writes checkpoints while training goes on. `WriterProcess` starts it; nobody else does.

    python -m bbu_train.checkpoint.writer <socket> <memory>

Both are descriptors that it inherits. It answers each request with None or the error that prevented the checkpoint, and
ends after a request that is None. It ends at once if the process that started it does, or replaces itself by the next
attempt, and then leaves at most a hidden folder: otherwise it could commit an old step in the middle of that attempt.
"""

import mmap
import os
import select
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from bbu_train.checkpoint import snapshot
from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.errors import InputError
from bbu_train.runtime import preemption


@dataclass(frozen=True)
class Request:
    """A checkpoint to write. `pickled` has the weights and the state, whose tensors lie in the shared memory."""

    checkpoints: LocalCheckpoints
    step: int
    pickled: bytes
    metrics: dict[str, float]


def write(request: Request, memory: mmap.mmap) -> Exception | None:
    """Commit a checkpoint, or return the error that prevented it."""
    try:
        weights, state = snapshot.unpack(request.pickled, memory)
        request.checkpoints.save(request.step, weights, state, request.metrics)
    except InputError as error:
        return error
    except Exception:
        return RuntimeError(f"The process that writes checkpoints failed.\n{traceback.format_exc()}")
    return None


def serve(connection: Connection, memory_descriptor: int) -> None:
    """Say that this process is ready, and write one checkpoint after the other."""
    threading.Thread(target=_end_with_connection, args=(connection.fileno(),), daemon=True).start()
    connection.send(None)
    try:
        while (request := connection.recv()) is not None:
            connection.send(write(request, mmap.mmap(memory_descriptor, os.fstat(memory_descriptor).st_size)))
    except (EOFError, ConnectionError):
        return  # the training process is gone


def _end_with_connection(descriptor: int) -> None:
    """End this process as soon as the other end is closed, also while it writes."""
    hang_up = select.poll()
    hang_up.register(descriptor, 0)  # no event but an end of the connection
    hang_up.poll()
    os._exit(1)


if __name__ == "__main__":
    preemption.end_with_parent(0)
    torch.set_num_threads(1)
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
