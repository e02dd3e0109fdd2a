"""Ending on request, by SIGUSR2, SIGTERM or Ctrl-C (SIGINT).

While a run trains, a signal sets a flag, which training checks wherever it can stop and save (`signals_set_flag`).
While a run is prepared there is nothing to save, so a signal raises an error at once (`signals_raise`). Elsewhere
Ctrl-C raises KeyboardInterrupt as usual.

SLURM sends SIGTERM and SIGUSR2 before a time limit and when it preempts a job. Until `install` is called they kill the
process, so it is called before the slow imports, and this module does not import torch.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from bbu_train.errors import SweepPreempted

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)

HANDED_OVER = "BBU_SIGNAL"  # the signal that came before this process replaced itself
SAME_INTERRUPT_SECONDS = 2.0
"""torchrun sends each SIGINT on to its ranks, which the terminal has sent one already. Both are one Ctrl-C."""
PARENT_POLL_SECONDS = 2.0  # how often a child process checks whether its parent is alive

_received: list[str] = []
_errors: list[Callable[[str], BaseException] | None] = [None]
"""What a signal raises, given its name; None: it sets the flag alone. The last one holds."""


def install() -> None:
    """Make SIGUSR2 and SIGTERM set the flag, however often they arrive. SIGINT keeps its behaviour.

    The process that calls this must check the flag, or use `signals_raise`: otherwise only SIGKILL or SIGINT ends it.
    Calling this function again is harmless.
    """
    for number in SIGNALS:
        signal.signal(number, _on_signal)
        signal.siginterrupt(number, False)  # restart system calls: a library's read or write is not cut short
    if (name := os.environ.pop(HANDED_OVER, None)) is not None:
        _received.append(name)


def hold_interrupts() -> None:
    """Let Ctrl-C set the flag until `release_interrupts`: during imports it would print a traceback."""
    signal.signal(signal.SIGINT, _on_signal)


def release_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, and raise it now if it came meanwhile."""
    if signal.getsignal(signal.SIGINT) is _on_signal:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if "SIGINT" in _received:
            raise KeyboardInterrupt


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


def signals_raise(make_error: Callable[[str], BaseException]) -> AbstractContextManager[None]:
    """Let the first signal, also one that came before, raise `make_error(name)`: what is done inside saves nothing.

    A second Ctrl-C raises KeyboardInterrupt. Several ranks have to end together, so there this changes nothing: they
    check the flag, and Ctrl-C raises KeyboardInterrupt in all of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return nullcontext()
    if (name := signal_name()) is not None:
        raise make_error(name)
    return _signals(make_error, lambda: "")


def signals_set_flag(notice: Callable[[], str]) -> AbstractContextManager[None]:
    """Let all signals set the flag. The first Ctrl-C prints `notice()`, if that is not empty; a second one raises
    KeyboardInterrupt.
    """
    return _signals(None, notice)


@contextmanager
def _signals(make_error: Callable[[str], BaseException] | None, notice: Callable[[], str]) -> Iterator[None]:
    """See `signals_raise` and `signals_set_flag`. Signals reach the main thread alone: elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            if text := notice():
                os.write(2, f"\n{text}\n".encode())  # a handler may interrupt a print, so it does not print itself
            _on_signal(number, frame)
        elif "TORCHELASTIC_RUN_ID" not in os.environ or now - first[0] > SAME_INTERRUPT_SECONDS:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    _errors.append(make_error)
    try:
        yield
    finally:
        _errors.pop()
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


def _on_signal(number: int, _frame: FrameType | None) -> None:
    is_first, name, make_error = not _received, signal.Signals(number).name, _errors[-1]
    _received.append(name)
    if is_first and make_error is not None:
        raise make_error(name)
