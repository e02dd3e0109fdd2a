"""The record of a data set: every annotation and picture by its hash, as rows of JSON in a gzip file.

    {"watched": [[path, Times], ...]}
    {"split": "train", "source": 0}
    [label, hash, Times of its own file or null, [[name of a picture, Times, hash], ...]]
    ...
    {"digest": "..."}                         # without it the file was cut off

The digest covers everything but times and `watched`.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from unicodedata import normalize

from bbu_train.types.files import DataFiles

END_BYTES = 4096  # read at the start and at the end of a picture
WINDOW = 65536  # pictures of an outdated record that are held to find those that have not changed
NUM_BUFFERED = 1000  # rows that are compressed together
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zlib.error)
"""What reading a record may raise that was cut off, changed, or written by other code."""

Times = list[int]
"""Size in bytes, and the times of the last change of the content and of the inode, in nanoseconds."""

NO_FILE: Times = [-1, 0, 0]


def read_rows(path: Path) -> Iterator[Any]:
    """Yield every row. Raises one of DAMAGED if the record is not whole."""
    row = None
    with gzip.open(path, "rt", encoding="ascii") as file:
        for line in file:
            row = json.loads(line)
            yield row
    if not (isinstance(row, dict) and "digest" in row):
        raise EOFError(f"{path} is cut off")


def rows_of(sources: Sequence[DataFiles], outdated: Path | None) -> Iterator[Any]:
    """Yield the rows of a new record. Hashes of pictures come from an outdated one, if size and times are the same."""
    known, digest = _KnownPictures(outdated), hashlib.sha256()
    yield {"watched": watched(sources)}
    for number, source in enumerate(sources):
        root = str(source.root)
        for split, annotations in source.splits.items():
            digest.update(split.encode())
            yield {"split": split, "source": number}
            for label, content, names in annotations():
                own = times_of(_path(root, label)) if isinstance(label, str) else None
                row = [label, _hash(content), own, [known.picture(root, name) for name in names]]
                digest.update(_decisive(*row))
                yield row
    yield {"digest": digest.hexdigest()[:16]}


def write(rows: Iterator[Any], file: IO[bytes]) -> tuple[str, bool]:
    """Write a record. Return its digest, and whether every file that it names exists."""
    is_complete, row, encode = True, None, json.JSONEncoder(check_circular=False).encode
    with gzip.GzipFile("", "wb", 1, file, mtime=0) as record:  # the same data gives the same bytes
        lines: list[str] = []
        for row in rows:
            lines.append(encode(row))
            if len(lines) == NUM_BUFFERED:
                record.write("\n".join([*lines, ""]).encode())
                lines.clear()
            if isinstance(row, list):
                is_complete = is_complete and row[2] != NO_FILE and all(times != NO_FILE for _, times, _ in row[3])
        record.write("\n".join([*lines, ""]).encode())
    assert isinstance(row, dict), "a record ends with its digest"
    return row["digest"], is_complete


def unchanged_digest(path: Path, sources: Sequence[DataFiles]) -> str | None:
    """Return the digest of a record if no file that it covers has another size or time now; else None."""
    root = ""
    try:
        for row in read_rows(path):
            if isinstance(row, dict):
                if "digest" in row:
                    return row["digest"]
                if "watched" in row and row["watched"] != watched(sources):
                    return None
                root = str(sources[row.get("source", 0)].root)
                continue
            label, _, times, pictures = row
            if times is not None and times != times_of(_path(root, label)):
                return None
            for name, known, _ in pictures:
                if known != times_of(_path(root, name)):
                    return None
    except DAMAGED:
        pass
    return None


def watched(sources: Sequence[DataFiles]) -> list[Any]:
    return [[str(path.absolute()), times_of(str(path))] for source in sources for path in source.watched]


def times_of(path: str) -> Times:
    try:
        return _times(os.stat(path))  # noqa: PTH116
    except (OSError, ValueError):
        return NO_FILE


def _times(status: os.stat_result) -> Times:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _decisive(label: int | str, content: str, _: Times | None, pictures: Iterable[Any]) -> bytes:
    """Return what an annotation adds to the digest. Disks differ in the Unicode form of names."""
    facts = [f"{name}\0{times[0]}\0{digest}" for name, times, digest in pictures]
    text = "\0".join([f"{label}", content, *facts, "\n"])
    return (text if text.isascii() else normalize("NFC", text)).encode("utf-8", "surrogatepass")


def _path(root: str, name: str) -> str:
    return name if name.startswith("/") else f"{root}/{name}"


class _KnownPictures:
    """The hashes of pictures, read from their files or taken from the outdated record in `path`.

    A record and its data have mostly the same order, so a window of WINDOW pictures follows the present ones: memory
    is bounded, and only a picture that moved far is read again.
    """

    def __init__(self, path: Path | None) -> None:
        self._rest = _recorded_pictures(path) if path else iter(())
        self._window: dict[str, tuple[Times, str]] = {}

    def picture(self, root: str, name: str) -> list[Any]:
        """Return [name, Times, hash]; the hash of a missing file is empty."""
        path = _path(root, name)
        if (before := self._find(name)) is not None and before[0] == times_of(path):
            return [name, *before]
        return [name, *_read_picture(path)]

    def _find(self, name: str) -> tuple[Times, str] | None:
        while name not in self._window and len(self._window) < WINDOW and (recorded := next(self._rest, None)):
            self._window[recorded[0]] = recorded[1], recorded[2]
        return self._window.pop(name, None)


def _recorded_pictures(path: Path) -> Iterator[tuple[str, Times, str]]:
    """Yield the pictures of a record, as far as it can be read."""
    try:
        for row in read_rows(path):
            if isinstance(row, list):
                yield from row[3]
    except DAMAGED:
        return


def _read_picture(path: str) -> tuple[Times, str]:
    """Return a file's Times, and the hash of its content or, if it is longer than two ends, of these ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return NO_FILE, ""
    try:
        status = os.fstat(descriptor)
        content = os.read(descriptor, 2 * END_BYTES)
        if status.st_size > 2 * END_BYTES:
            content = content[:END_BYTES] + os.pread(descriptor, END_BYTES, status.st_size - END_BYTES)
    except OSError:  # a folder
        return NO_FILE, ""
    finally:
        os.close(descriptor)
    return _times(status), _hash(content)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
