"""Writing a file so that neither a kill nor a power cut leaves half of it."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, text as UTF-8."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` at the end of the block. If the block raises, `path` stays as it is.

    Readers see the old file or the new one, never a part of either. The new file is flushed to disk before it is
    renamed, and its folder after: a rename on its own may survive a power cut without the contents of the file. Several
    processes and hosts may write the same path: the last one wins.
    """
    unfinished = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:  # a new file: a link that lies there is not followed
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    flush(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and wait until their names are on disk."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        flush(each.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
