"""Logging to the terminal, without breaking the progress bar, and to the run's train.log."""

import io
import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm


class _Terminal(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def start(is_main: bool) -> MemoryHandler:
    """Start logging to stderr. Return the handler that keeps messages until the run has a folder, for `to_file`.

    All ranks log the same, so those that are not `is_main` show errors only.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes what its encoding lacks by itself
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = _Terminal()
    terminal.setLevel(logging.INFO if is_main else logging.ERROR)
    early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[terminal, early], force=True)
    # Other packages log warnings only. Tracebacks are debug messages: only train.log gets them.
    logging.getLogger("bbu_train").setLevel(logging.DEBUG)
    return early


def make_room_for_progress_bar() -> None:
    """Show warnings only from now on if stderr is a terminal. A file or a pipe still gets all progress messages."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Terminal) and sys.stderr.isatty():
            handler.setLevel(max(handler.level, logging.WARNING))


def to_file(early: MemoryHandler, folder: Path) -> None:
    """Write the messages that `early` has kept, and all later ones, to the run's train.log."""
    file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    early.setTarget(file)
    early.close()
    logging.getLogger().removeHandler(early)
    logging.getLogger().addHandler(file)
