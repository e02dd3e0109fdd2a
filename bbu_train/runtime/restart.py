"""Starting all ranks of a run again, in their own processes, when one of them runs out of memory.

A rank that fails in a backward pass leaves the others in an exchange that never ends. So each rank has a thread that
watches the store of the process group. When a rank calls for a restart, the threads of all ranks answer, and then each
replaces its process by a new one with the same command. The new processes resume from the last checkpoint. torchrun and
SLURM see no process end.
"""

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from bbu_train.runtime import distributed, preemption

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5  # how often a rank looks for a call
ANSWER_SECONDS = 120  # how long all ranks have to answer
CALL, ANSWERS = "restart", "restart answers"
REASON = "BBU_RESTART_REASON"  # why the processes were replaced: the new process compares it with the next reason

_watches: "list[_Watch]" = []  # one, while there are several ranks


def watch(added_arguments: Sequence[str]) -> None:
    """Watch for calls from now on, if there are several ranks. `added_arguments` end the command of a new process."""
    if distributed.world_size() > 1:
        _watches.append(_Watch(added_arguments))
        _watches[-1].start()


def stop() -> None:
    """End the watch, before the ranks leave each other."""
    while _watches:
        watch = _watches.pop()
        watch.is_over.set()
        watch.join()


def restart_all_ranks(reason: str) -> NoReturn:
    """Restart all ranks. `reason` says why, and how far the run had come: the same one twice ends the run with 2."""
    (watch,) = _watches
    watch.store.set(CALL, reason)
    watch.wait_for_end()


def wait_if_called() -> None:
    """Block if a restart is under way; else return, so that the caller raises its own error."""
    for watch in _watches:
        if watch.is_called.is_set():
            watch.wait_for_end()


AGAIN = "The same command resumes the run from its last checkpoint."
NO_PROGRESS = (
    "Lower model.max_pixels or the number of teachers, take engine.gradient_checkpointing=full, or train on a larger "
    "device."
)


class _Watch(threading.Thread):
    """The thread of a rank that waits for a call and then restarts the process."""

    def __init__(self, added_arguments: Sequence[str]):
        super().__init__(daemon=True)
        self.added_arguments = added_arguments
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.store = distributed.connect_to_store()
        self.is_called, self.is_over = threading.Event(), threading.Event()

    def wait_for_end(self) -> NoReturn:
        while True:
            with suppress(Exception):  # torch raises in this thread when data workers are ended
                self.join()

    def run(self) -> None:
        while not self.is_over.wait(POLL_SECONDS):
            try:
                is_called = self.store.check([CALL])
            except RuntimeError:  # rank 0 has left: the run is over, or has failed there
                return
            if is_called:
                self.is_called.set()
                try:
                    self._restart()
                except Exception as error:
                    _give_up(f"The ranks cannot restart: {error!r}. {AGAIN}")

    def _restart(self) -> NoReturn:
        reason = self.store.get(CALL).decode()
        _end_children()
        if os.environ.get(REASON) == reason:
            _give_up(f"error: The ranks have restarted without any progress. {reason} {NO_PROGRESS}", code=2)
        log.log(logging.WARNING if self.rank == 0 else logging.DEBUG, "%s All ranks start again.", reason)
        self.store.add(ANSWERS, 1)
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._may_start():
            if time.monotonic() > deadline:
                _give_up(f"A rank did not answer for {ANSWER_SECONDS} s, so the ranks cannot restart. {reason} {AGAIN}")
            time.sleep(0.01)
        os.environ[REASON] = reason
        os.environ[distributed.RESTARTS] = str(distributed.num_restarts() + 1)
        preemption.hand_over()
        _flush()
        _replace_process([sys.executable, *sys.orig_argv[1:], *self.added_arguments])

    def _may_start(self) -> bool:
        """Whether all ranks have answered, and the store of this attempt is out of the way of the next one.

        Where rank 0 holds the store, it goes first: the others see that they have lost it.
        """
        try:
            have_answered = self.store.add(ANSWERS, 0) == self.world_size
        except RuntimeError:
            return True
        return have_answered and (self.rank == 0 or distributed.store_outlives_ranks())


def _end_children() -> None:
    """End data workers, which would take the new process for their parent."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join()


def _replace_process(command: Sequence[str]) -> NoReturn:
    """Become `command`, which inherits stdin, stdout and stderr only: no socket, and no memory of a GPU."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 (plain names are wanted)
        if int(name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(name), False)
    os.execv(command[0], command)


def _give_up(message: str, code: int = os.EX_TEMPFAIL) -> NoReturn:
    """End this process, although its main thread may wait for other ranks."""
    print(message, file=sys.stderr)
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
