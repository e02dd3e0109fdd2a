"""Logging to the terminal, without breaking the progress bar, and to the run's train.log."""

import io
import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm


class _Terminal(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(f"{prefix}{self.format(record)}", file=sys.stderr)


class _Early(MemoryHandler):
    """Keeps any number of messages until `to_file` gives it a target."""

    def __init__(self) -> None:
        super().__init__(capacity=0, flushLevel=logging.CRITICAL + 1)


def start(is_main: bool) -> None:
    """Start logging to stderr, and keep all messages in memory until `to_file` writes them.

    All ranks log the same, so those that are not `is_main` show errors only and keep nothing. A second call, by the run
    that the command means, keeps what came since the first one.
    """
    early = next(iter(_early_handlers()), None) or _Early()
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes what its encoding lacks by itself
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = _Terminal()
    terminal.setLevel(logging.INFO if is_main else logging.ERROR)
    handlers = [terminal, early] if is_main else [terminal]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=handlers, force=True)
    # Other packages log warnings only. Tracebacks are debug messages: only train.log gets them.
    logging.getLogger("bbu_train").setLevel(logging.DEBUG)


def kept_warnings() -> list[str]:
    """Return the warnings among the messages that are kept for the file."""
    kept = [record for handler in _early_handlers() for record in handler.buffer]
    return [record.getMessage() for record in kept if record.levelno >= logging.WARNING]


def forget_kept() -> None:
    """Forget the messages of a run that has ended before it had a file."""
    for early in _early_handlers():
        logging.getLogger().removeHandler(early)


def _early_handlers() -> list[_Early]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Early)]


def to_file(folder: Path) -> None:
    """Write the messages that were kept, and all later ones, to the run's train.log."""
    root = logging.getLogger()
    file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for early in _early_handlers():
        early.setTarget(file)
        early.close()
        root.removeHandler(early)
    root.addHandler(file)
