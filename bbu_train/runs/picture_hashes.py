"""The hashes of pictures: of their files, or from an older record if a file has kept its size and times."""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bbu_train.images.files import SpellingOnDisk
from bbu_train.types.files import NO_FILE, Times, as_times, times_of

START_BYTES = 4096  # hashed at the start of a picture file
END_BYTES = 1024  # and at the end of one whose size does not change with its pixels
UNCOMPRESSED = (b"BM", b"II", b"MM")  # how such files begin: BMP and TIFF
WINDOW = 32768  # pictures of an outdated record that are held in either direction
CHUNK_SIZE = 64  # pictures that are read at a time
SLOW_SECONDS = (
    2e-4  # per picture; above this, threads read. From memory it takes a tenth, and they would triple CPU time
)
NUM_THREADS = 8

RecordedPicture = list[Any]
"""[hash, Times, name as the annotation gives it], and its spelling on disk if that is another.

The hash of a missing file is empty.
"""


class PictureHashes:
    """Hashes pictures. `outdated` are those of an older record.

    A record and its data have mostly the same order, so WINDOW recorded pictures before and after the last one that was
    found are held: memory is bounded, and only a picture that moved far is read again.
    """

    def __init__(self, outdated: Iterator[RecordedPicture]) -> None:
        self.spelling = SpellingOnDisk()
        self._outdated = outdated
        self._num_read = 0  # of the older record
        self._position = 0  # in it, of the last picture that was found
        self._window: OrderedDict[str, tuple[int, RecordedPicture]] = OrderedDict()  # with their positions

    def record(self, root: str, names: Sequence[str]) -> list[RecordedPicture]:
        """Return the pictures of `names`, relative to `root` or absolute; read by several threads if the disk is slow.

        As by the reader of the data, a file is found if the disk has its name in another Unicode form.
        """
        known = [self._find(name) for name in names]
        shares = [slice(start, start + CHUNK_SIZE) for start in range(0, len(names), CHUNK_SIZE)]
        record_share = partial(self._record_share, root, names, known)
        pictures: list[RecordedPicture] = []
        for number, share in enumerate(shares, 1):
            began = time.perf_counter()
            pictures += record_share(share)
            if time.perf_counter() - began > SLOW_SECONDS * CHUNK_SIZE:
                with ThreadPoolExecutor(NUM_THREADS) as threads:
                    return pictures + [each for part in threads.map(record_share, shares[number:]) for each in part]
        return pictures

    def _find(self, name: str) -> RecordedPicture | None:
        while name not in self._window and self._num_read < self._position + WINDOW:
            if (recorded := next(self._outdated, None)) is None:
                break
            self._window.setdefault(recorded[2], (self._num_read, recorded))
            self._num_read += 1
        index, found = self._window.get(name, (self._position + 1, None))
        self._position = max(self._position, min(index, self._num_read))
        while self._window and next(iter(self._window.values()))[0] < self._position - WINDOW:
            self._window.popitem(last=False)
        return found

    def _record_share(
        self, root: str, names: Sequence[str], known: Sequence[RecordedPicture | None], share: slice
    ) -> list[RecordedPicture]:
        return [self._record_one(root, *each) for each in zip(names[share], known[share], strict=True)]

    def _record_one(self, root: str, name: str, known: RecordedPicture | None) -> RecordedPicture:
        path = path_of(root, name)
        if known is not None and known[2:] == [name] and known[1] == times_of(path):
            return known
        if content := _read(path):
            return [*content, name]
        on_disk = self._spell(root, name)
        if known is not None and known[2:] == [name, on_disk] and known[1] == times_of(path_of(root, on_disk)):
            return known
        content = _read(path_of(root, on_disk))
        return [*content, name, on_disk] if content else ["", NO_FILE, name]

    def _spell(self, root: str, name: str) -> str:
        path = self.spelling(Path(path_of(root, name)))
        return str(path) if name.startswith("/") else str(path.relative_to(root))


def path_of(root: str, name: str) -> str:
    return name if name.startswith("/") else f"{root}/{name}"


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _read(path: str) -> tuple[str, Times] | None:
    """Return the hash of a file's first START_BYTES, and of END_BYTES at the end of a BMP or TIFF, and its Times."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    try:
        status = os.fstat(descriptor)
        content = os.read(descriptor, START_BYTES)
        if status.st_size > START_BYTES and content.startswith(UNCOMPRESSED):
            content += os.pread(descriptor, END_BYTES, status.st_size - END_BYTES)
    except OSError:  # a folder
        return None
    finally:
        os.close(descriptor)
    return hash_of(content), as_times(status)
