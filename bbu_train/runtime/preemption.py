"""Ending on request: SIGUSR2, SIGTERM or Ctrl-C sets a flag, which training checks wherever it can stop.

SLURM sends these signals before a time limit and when it preempts a job. Until `install` is called they kill the
process, so it is called before the slow imports, and this module does not import torch. Ctrl-C (SIGINT) sets the flag
only while `interrupts_set_flag`; elsewhere there is nothing to save, and it raises KeyboardInterrupt as usual.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bbu_train.errors import SweepPreempted

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)

HANDED_OVER = "BBU_SIGNAL"  # the signal that came before this process replaced itself
SAME_INTERRUPT_SECONDS = 2.0
"""torchrun sends each SIGINT on to its ranks, which the terminal has sent one already. Both are one Ctrl-C."""
PARENT_POLL_SECONDS = 2.0  # how often a child process checks whether its parent is alive

_received: list[str] = []


def install() -> None:
    """Make SIGUSR2 and SIGTERM only set the flag, however often they arrive.

    SIGINT keeps its behaviour (`interrupts_set_flag`). Calling this function again is harmless.

    The process that calls this must check the flag: otherwise only SIGKILL or SIGINT ends it.
    """
    for number in SIGNALS:
        signal.signal(number, _set_flag)
        signal.siginterrupt(number, False)  # restart system calls: a library's read or write is not cut short
    if (name := os.environ.pop(HANDED_OVER, None)) is not None:
        _received.append(name)


def hand_over() -> None:
    """Let the process that replaces this one by exec know of a signal that this one got."""
    if (name := signal_name()) is not None:
        os.environ[HANDED_OVER] = name


def uninstall() -> None:
    """Let these signals end the process at once again, for a process that does not train."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def requested() -> bool:
    """Whether this process was asked to end. Other ranks may not have been, so the ranks have to agree."""
    return bool(_received)


def signal_name() -> str | None:
    """Return the name of the first signal that came, such as "SIGTERM", or None."""
    return _received[0] if _received else None


def end_sweep_if_asked() -> None:
    """Raise SweepPreempted if this process, which starts runs or waits for them, was asked to end."""
    if (name := signal_name()) is not None:
        raise SweepPreempted(name)


@contextmanager
def interrupts_set_flag(notice: str) -> Iterator[None]:
    """Let the first Ctrl-C set the flag and print `notice`, if it is not empty; a second one raises KeyboardInterrupt.

    Signals reach the main thread alone: elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            _set_flag(number, frame)
            if notice:
                os.write(2, f"\n{notice}\n".encode())  # a handler may interrupt a print, so it does not print itself
        elif "TORCHELASTIC_RUN_ID" not in os.environ or now - first[0] > SAME_INTERRUPT_SECONDS:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals around a fork, so that the child gets none before it calls `end_with_parent`.

    Ctrl-C goes to all processes of a terminal's group, so a worker must not take it either.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(_worker: int) -> None:
    """Let a data worker, forked within `signals_blocked`, end only when its parent terminates it or is gone.

    A signal often goes to all processes of a job, and the parent still needs batches until it ends at its next step. So
    SIGTERM ends a worker only if the parent sent it, as Python does at exit. A worker whose parent is gone ends by
    itself, because torch would let it wait until somebody reads its batches.
    """
    threading.Thread(target=_wait_for_end, args=(os.getppid(),), daemon=True).start()


def _wait_for_end(parent: int) -> None:
    while True:
        info = signal.sigtimedwait((*SIGNALS, signal.SIGINT), PARENT_POLL_SECONDS)
        is_terminated = info is not None and info.si_signo == signal.SIGTERM and info.si_pid == parent
        if is_terminated or os.getppid() != parent:
            os._exit(0)


def _set_flag(number: int, _frame: FrameType | None) -> None:
    _received.append(signal.Signals(number).name)
