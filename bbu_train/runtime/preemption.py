"""A request to end that is no failure: SIGUSR2 or SIGTERM sets a flag, and the training looks at it where it can end.

SLURM sends them before a time limit and when it takes a job's nodes for another. No torch here: until `install` is
called such a signal kills the process, so it comes before the slow imports.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bbu_train.errors import SweepPreempted

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)

LOOKS_FOR_PARENT_EVERY = 2.0  # seconds, of a data worker

_received: list[str] = []


def install() -> None:
    """From here on these signals only set the flag, however many come. SIGINT keeps its meaning. May be called again.

    The process that calls this must look at the flag: nothing short of SIGKILL ends it otherwise.
    """
    for number in SIGNALS:
        signal.signal(number, _note)
        signal.siginterrupt(number, False)  # what a library is reading or writing just then is not cut short


def uninstall() -> None:
    """From here on these signals end the process at once: nothing trains in it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def requested() -> bool:
    """Whether this process was asked to end. Other ranks may not have been: they have to agree."""
    return bool(_received)


def signal_name() -> str | None:
    """The first signal that came, such as "SIGTERM"."""
    return _received[0] if _received else None


def end_sweep_if_asked() -> None:
    """Raise SweepPreempted if this process was asked to end, which starts runs or waits for them."""
    if (name := signal_name()) is not None:
        raise SweepPreempted(name)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Around a fork: the child begins with the signals blocked, so that none meets it before `end_with_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(_worker: int) -> None:
    """What a data worker does, forked while signals were held back: it ends when its parent says so.

    A signal often goes to all processes of a job, and the parent, which ends at its next step, needs the batches up to
    there. So SIGTERM ends a worker only if the parent sent it, as Python does at exit. Once the parent is gone, it ends
    by itself: torch has it wait until somebody reads what it has made.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while True:
        came = signal.sigtimedwait(SIGNALS, LOOKS_FOR_PARENT_EVERY)
        asked = came is not None and came.si_signo == signal.SIGTERM and came.si_pid == parent
        if asked or os.getppid() != parent:
            os._exit(0)


def _note(number: int, _frame) -> None:
    _received.append(signal.Signals(number).name)
