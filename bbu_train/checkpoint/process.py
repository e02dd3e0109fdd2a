"""The process of writer.py, seen from the training process, and the memory that both share."""

import mmap
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path

import torch

from bbu_train.checkpoint import snapshot
from bbu_train.checkpoint.snapshot import Packed
from bbu_train.checkpoint.writer import Request
from bbu_train.errors import InputError
from bbu_train.runtime import preemption

PORTABLE = 1  # cudaHostRegisterPortable: pinned for whichever device copies


class WriterProcess:
    """A process that writes checkpoints, with memory for tensors that are laid out as those of `packed`.

    A thread makes it ready: it reserves the memory, pins it if there is a GPU, and waits until the process has imported
    torch. `wait_until_ready` raises what went wrong there. Data workers may be forked at any moment: the thread holds
    no lock of Python, and the memory is not inherited.
    """

    def __init__(self, packed: Packed) -> None:
        self.starts, self.num_bytes = packed.starts, packed.num_bytes
        descriptor = os.memfd_create("bbu_train checkpoint")  # /dev/shm has 64 MiB in many containers
        os.ftruncate(descriptor, self.num_bytes)
        self.memory = mmap.mmap(descriptor, self.num_bytes)
        self.memory.madvise(mmap.MADV_DONTFORK)
        self.connection, other_end = Pipe()
        self.process = _start(other_end.fileno(), descriptor)
        other_end.close()  # so that the end of the process closes the connection
        self._pinned: list[int] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._get_ready, args=(descriptor,), daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def fits(self, packed: Packed) -> bool:
        return (self.starts, self.num_bytes) == (packed.starts, packed.num_bytes)

    def copy(self, packed: Packed) -> None:
        """Copy the tensors to the shared memory. From a GPU, this only queues the copies on the current stream."""
        for tensor, slot in zip(packed.tensors, packed.slots, strict=True):
            snapshot.view(self.memory, slot).copy_(tensor, non_blocking=True)

    def send(self, request: Request) -> None:
        """Ask for a checkpoint of the tensors that were copied. They must not be overwritten before the answer."""
        with suppress(ConnectionError):  # the process has ended: `receive` says so
            self.connection.send(request)

    def has_answered(self) -> bool:
        """Whether `receive` would return at once: with an answer, or because the process has ended."""
        return not self._thread.is_alive() and self.connection.poll()

    def receive(self, moment: str) -> Exception | None:
        """Wait for the answer to a request, and return the error that prevented the checkpoint.

        If the process has ended instead, an InputError says that it did so at this `moment`.
        """
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            return self._describe_end(moment)

    def close(self) -> None:
        """End the process, which has answered all requests, and free the memory."""
        self._thread.join()
        with suppress(ConnectionError):  # it has ended already
            self.connection.send(None)
        self.process.wait()
        self.connection.close()
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)  # fails only if the GPU has failed, which ended the run
        del self.memory  # unmapped with its last tensor

    def _get_ready(self, descriptor: int) -> None:
        try:
            for start, end in pairwise([*self.starts, self.num_bytes]):
                os.posix_fallocate(descriptor, start, end - start)  # or a lack of memory would be a SIGBUS later
                if torch.cuda.is_available():
                    self._pin(start, end - start)
            self._error = self.receive("before it was ready")
        except Exception as error:
            self._error = error
        finally:
            os.close(descriptor)

    def _describe_end(self, moment: str) -> InputError:
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return InputError(
            f"The process that writes checkpoints ended ({how}) {moment}. Checkpoints that were committed earlier are "
            "good. The usual cause is the memory limit of a job: look for it there, and resume the run."
        )

    def _pin(self, start: int, num_bytes: int) -> None:
        """Register a segment with CUDA, so that copies to it run on their own, and fast."""
        address = snapshot.view(self.memory, (start, torch.uint8, (num_bytes,))).data_ptr()
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, num_bytes, PORTABLE))
        self._pinned.append(address)


def _start(connection: int, memory: int) -> subprocess.Popen[bytes]:
    """Start writer.py with these descriptors.

    It has a process group of its own, so that Ctrl-C ends only the training process, and the signals of preemption are
    blocked in it: the training process decides when it ends.
    """
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": ""}
    with preemption.signals_blocked():
        return subprocess.Popen(
            [sys.executable, "-m", "bbu_train.checkpoint.writer", str(connection), str(memory)],
            stdin=subprocess.DEVNULL,
            pass_fds=(connection, memory),
            process_group=0,
            env=environment,
        )
