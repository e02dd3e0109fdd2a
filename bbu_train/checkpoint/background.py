"""Saving checkpoints while training goes on."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.checkpoint.process import WriterProcess
from bbu_train.checkpoint.savable import check_state, check_weights
from bbu_train.checkpoint.snapshot import Packed
from bbu_train.checkpoint.writer import Request
from bbu_train.errors import InputError
from bbu_train.runtime import host_memory

log = logging.getLogger(__name__)

MIN_BACKGROUND_BYTES = 64 << 20
"""Smaller checkpoints are written at once: that takes 0.1 s, and a process first imports torch for 2 s of a core."""
SPARE_BYTES = 4 << 30  # host memory to leave free beside the copy, for data workers and the page cache
LONG_SECONDS = 1.0  # a wait that is worth a line in the log


@dataclass
class _Save:
    """A checkpoint on its way. `sources` are kept until they are copied: their memory must not be used again."""

    request: Request
    num_bytes: int
    began: float
    sources: list[Tensor]
    copied: torch.cuda.Event | None  # None on a CPU, where the copy is complete at once
    is_sent: bool = False


class BackgroundCheckpoints:
    """Saves to `checkpoints` by a copy in host memory, from which a process of its own writes and commits.

    The optimizer updates weights and state in place, so they must not change before they are copied. On a GPU the copy
    runs on a stream of its own, beside the next forward and backward pass, and `wait_for_copy` keeps the device from
    the next update until it is done. On a CPU all is copied when `save` returns.

    One checkpoint is written at a time. What goes wrong is kept in `failure`, after which nothing is saved. `save`
    itself writes checkpoints that are small, those before `prepare`, and those for whose copy the job's memory limit
    leaves no room. `grace_seconds` is the time between a signal and the end of the job, None if it has no limit.
    """

    def __init__(self, checkpoints: LocalCheckpoints, grace_seconds: float | None) -> None:
        self.checkpoints = checkpoints
        self.grace_seconds = grace_seconds
        self.failure: Exception | None = None
        self._process: WriterProcess | None = None
        self._refusal: str | None = None  # why no process writes the checkpoints
        self._current: _Save | None = None
        self._told: set[str] = set()

    def prepare(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Start the process and reserve memory for checkpoints of this size, while training goes on."""
        self._start_process(Packed((weights, state)))

    def save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], metrics: dict[str, float]) -> None:
        """Begin to save a checkpoint. Waits until the one before is committed."""
        check_weights(weights)
        check_state(state, "state")
        began = time.monotonic()
        packed = Packed((weights, state))
        self._wait()
        process = self._ready_process(packed)
        if (seconds := time.monotonic() - began) > LONG_SECONDS:
            self._tell_once(
                "Training waited %.1f s to save step %d: the process that writes checkpoints had not finished the one "
                "before, or was still starting.",
                *(seconds, step),
            )
        if self.failure is not None:
            return
        if process is None:
            self._save_now(step, weights, state, metrics, packed.num_bytes)
            return
        request = Request(self.checkpoints, step, packed.pickled, metrics)
        self._current = _Save(request, packed.num_bytes, time.monotonic(), packed.tensors, _copy(packed, process))
        self.poll()

    def wait_for_copy(self) -> None:
        """Let the device do what is queued from now on, such as an update, after the copy."""
        if self._current is not None and self._current.copied is not None:
            self._current.copied.wait()

    def poll(self) -> Exception | None:
        """Hand a complete copy to the process, and return what went wrong so far. Never waits."""
        if self._current is not None and (self._current.copied is None or self._current.copied.query()):
            self._send(self._current)
        if self._process is not None and self._process.has_answered() and self.failure is None:
            self._receive()
        return self.failure

    def finish(self) -> None:
        """Wait until the last checkpoint is committed, or until `failure` says why it is not."""
        if self._current is not None:
            log.info("Waiting until the checkpoint of step %d is on disk.", self._current.request.step)
            self._wait()

    def close(self) -> None:
        """Wait for the last checkpoint and end the process. What goes wrong now is logged, not raised."""
        known = self.failure
        try:
            self.finish()
        except RuntimeError as error:  # the GPU has failed, and the copy may not be whole: it is not written
            self.failure = error
        if self.failure is not known:
            log.error("%s", self.failure)
        if self._process is not None:
            self._process.close()
            self._process = None

    def _wait(self) -> None:
        if self._current is not None:
            if self._current.copied is not None:
                self._current.copied.synchronize()
            self._send(self._current)
            self._receive()

    def _start_process(self, packed: Packed) -> None:
        if packed.num_bytes < MIN_BACKGROUND_BYTES:
            return
        available = host_memory.available_bytes(Path("/"), os.environ)
        if packed.num_bytes + SPARE_BYTES > available:
            self._refusal = f"this job may use only {available / 1e9:.1f} GB more of host memory"
            return
        try:
            self._process = WriterProcess(packed)
        except OSError as error:
            self._refusal = f"the process that would write it could not be started ({error})"

    def _ready_process(self, packed: Packed) -> WriterProcess | None:
        """Return the process if it can take these tensors, or None if they must be saved without it."""
        if self._process is not None and not self._process.fits(packed):  # the state has grown
            self._process.close()
            self._process = None
            self._start_process(packed)
        if self._process is not None:
            try:
                self._process.wait_until_ready()
            except InputError as error:
                self.failure = error
            except (OSError, RuntimeError) as error:
                self._refusal = f"host memory could not be reserved for it ({error})"
                self._process.close()
                self._process = None
        return self._process

    def _save_now(
        self, step: int, weights: dict[str, Tensor], state: dict[str, Any], metrics: dict[str, float], num_bytes: int
    ) -> None:
        began = time.monotonic()
        try:
            self.checkpoints.save(step, weights, state, metrics)
        except InputError as error:
            self.failure = error
            return
        seconds = time.monotonic() - began
        self._check_grace(seconds)
        if self._refusal is not None:
            self._tell_once(
                "Training stopped for %.1f s to save step %d: a copy of %.1f GB with %.1f GB to spare would let it go "
                "on, but %s.",
                *(seconds, step, num_bytes / 1e9, SPARE_BYTES / 1e9, self._refusal),
            )

    def _send(self, save: _Save) -> None:
        """Hand the copy to the process, the first time that this is called."""
        if not save.is_sent:
            assert self._process is not None, "a process was ready when the copy began"
            save.is_sent = True
            save.sources.clear()
            self._process.send(save.request)

    def _receive(self) -> None:
        """Wait for the answer to the current request, or for the end of the process."""
        assert self._process is not None, "a process was ready when the copy began"
        save, self._current = self._current, None
        task = f"the checkpoint of step {save.request.step} was committed" if save else "the next checkpoint"
        self.failure = self._process.receive(f"before {task}")
        if self.failure is None and save is not None:
            seconds = time.monotonic() - save.began
            log.debug("step %d: %.1f GB committed after %.1f s", save.request.step, save.num_bytes / 1e9, seconds)
            self._check_grace(seconds)

    def _check_grace(self, seconds: float) -> None:
        if self.grace_seconds is not None and 2 * seconds > self.grace_seconds:
            self._tell_once(
                "Saving took %.0f s, but cluster.grace_seconds=%d: a run that is asked to end while it saves may lose "
                "the steps since its last checkpoint. Raise it to more than a step and two saves.",
                *(seconds, self.grace_seconds),
            )

    def _tell_once(self, message: str, *values: object) -> None:
        if message not in self._told:
            self._told.add(message)
            log.warning(message, *values)


def _copy(packed: Packed, process: WriterProcess) -> torch.cuda.Event | None:
    """Begin to copy the tensors to the memory of the process. Return the event of its end, None if it is over."""
    device = next((tensor.device for tensor in packed.tensors if tensor.is_cuda), None)
    if device is None:
        process.copy(packed)
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        process.copy(packed)
        return stream.record_event()
