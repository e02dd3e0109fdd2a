"""Writing a folder so that a kill leaves none of its name, or the one that was there before."""

import ctypes
import errno
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from bbu_train.runtime.atomic_write import flush, make_folder

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
REPLACED = "-replaced"
CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What file systems and kernels without an exchange of two names say."""


@contextmanager
def open_folder_atomically(folder: Path) -> Iterator[Path]:
    """Give a new folder that replaces `folder` at the end of the block. If the block raises, `folder` stays as it is.

    The new folder is hidden beside it and is flushed to disk before it is renamed. A folder that is there already is
    exchanged with it in one step, then deleted. A file system that cannot exchange (some network file systems) takes
    two renames, and a kill between them leaves both folders under hidden names. The next process of this host that
    writes the same folder deletes what a killed one has left, and gives a folder its name back that has lost it so.
    """
    make_folder(folder.parent)
    hidden = f".unfinished-{hashlib.sha256(folder.name.encode(errors='surrogateescape')).hexdigest()[:16]}"
    _clean_up_after_a_kill(folder, f"{hidden}-{socket.gethostname()}-")
    unfinished = folder.with_name(f"{hidden}-{socket.gethostname()}-{os.getpid()}")
    try:
        unfinished.mkdir()
        yield unfinished
        for path in (*unfinished.rglob("*"), unfinished):
            flush(path)
        if folder.exists():
            _exchange(unfinished, folder)
        else:
            unfinished.rename(folder)
        flush(folder.parent)
    finally:
        rmtree(unfinished, ignore_errors=True)  # incomplete, or the folder that was replaced


def _clean_up_after_a_kill(folder: Path, prefix: str) -> None:
    for leftover in folder.parent.glob(f"{prefix}*"):
        process_id = leftover.name.removeprefix(prefix).removesuffix(REPLACED)
        if Path(f"/proc/{process_id}").exists() and process_id != str(os.getpid()):
            continue
        if leftover.name.endswith(REPLACED) and not folder.exists():
            leftover.rename(folder)
        else:
            rmtree(leftover, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Exchange the names of two folders."""
    names = AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(*names, RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in CANNOT_EXCHANGE:
        raise OSError(code, os.strerror(code), str(old))
    aside = old.rename(new.with_name(f"{new.name}{REPLACED}"))
    new.rename(old)
    aside.rename(new)
