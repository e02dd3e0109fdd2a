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


def start() -> MemoryHandler:
    """Start logging. Return the handler that keeps messages until the run has a folder, for `to_file`.

    If stderr is a terminal it shows warnings only, because the progress bar is there. If stderr is a file or a pipe, it
    gets all progress messages.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes what its encoding lacks by itself
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = _Terminal()
    terminal.setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)
    early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[terminal, early], force=True)
    # Other packages log warnings only. Tracebacks are debug messages: only train.log gets them.
    logging.getLogger("bbu_train").setLevel(logging.DEBUG)
    return early


def to_file(early: MemoryHandler, folder: Path) -> None:
    """Write the messages that `early` has kept, and all later ones, to the run's train.log."""
    file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    early.setTarget(file)
    early.close()
    logging.getLogger().removeHandler(early)
    logging.getLogger().addHandler(file)
