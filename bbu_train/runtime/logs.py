"""Where messages go: to the terminal without breaking the progress bar, and to the run's train.log."""

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm


class _Terminal(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def start() -> MemoryHandler:
    """Begin to log. What comes before the run has a folder is kept by the handler, for `to_file`.

    A terminal with a progress bar gets warnings; a file or a pipe in its place, which has none, is told what goes on.
    """
    terminal = _Terminal()
    terminal.setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)
    early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[terminal, early], force=True)
    # Others are heard when they warn. Tracebacks are for train.log: the command line says errors in its own way.
    logging.getLogger("bbu_train").setLevel(logging.DEBUG)
    return early


def to_file(early: MemoryHandler, folder: Path) -> None:
    """From here on, and with all that `early` has kept, messages go to the run's train.log."""
    file = logging.FileHandler(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    early.setTarget(file)
    early.close()
    logging.getLogger().removeHandler(early)
    logging.getLogger().addHandler(file)
