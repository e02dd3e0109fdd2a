"""The record of a data set: every annotation and picture by its hash, as rows of JSON in a gzip file.

    {"watched": [[path, Times], ...]}
    {"split": "train", "source": 0}
    [label, hash, Times of its own file or null, [[name of a picture, Times, hash], ...]]
    ...
    {"digest": "..."}                         # without it the file was cut off

The digest covers everything but times and `watched`.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any
from unicodedata import normalize

from bbu_train.types.files import Annotation, DataFiles

END_BYTES = 8192  # read at the start and at the end of a picture
WINDOW = 65536  # pictures of an outdated record that are held to find those that have not changed
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
    known, digest = _KnownPictures(outdated), blake2b(digest_size=8)
    yield {"watched": watched(sources)}
    for number, source in enumerate(sources):
        for split, annotations in source.splits.items():
            digest.update(split.encode())
            yield {"split": split, "source": number}
            for annotation in annotations():
                row = _row(str(source.root), annotation, known)
                digest.update(_decisive(row))
                yield row
    yield {"digest": digest.hexdigest()}


def write(rows: Iterator[Any], file: IO[bytes]) -> tuple[str, bool]:
    """Write a record. Return its digest, and whether every file that it names exists."""
    is_complete, row = True, None
    with gzip.GzipFile("", "wb", 1, file, mtime=0) as record:  # the same data gives the same bytes
        for row in rows:
            record.write(json.dumps(row).encode() + b"\n")
            if isinstance(row, list):
                is_complete = is_complete and row[2] != NO_FILE and all(times != NO_FILE for _, times, _ in row[3])
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
            if times is not None and times != times_of(os.path.join(root, label)):  # noqa: PTH118 (done a million times)
                return None
            for name, known, _ in pictures:
                if known != times_of(os.path.join(root, name)):  # noqa: PTH118
                    return None
    except DAMAGED:
        pass
    return None


def watched(sources: Sequence[DataFiles]) -> list[Any]:
    return [[str(path.absolute()), times_of(str(path))] for source in sources for path in source.watched]


def times_of(path: str) -> Times:
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # a name that no file can have
        return NO_FILE
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _row(root: str, annotation: Annotation, known: "_KnownPictures") -> list[Any]:
    label, content, pictures = annotation
    own = times_of(os.path.join(root, label)) if isinstance(label, str) else None  # noqa: PTH118
    digest = blake2b(content, digest_size=6).hexdigest()
    return [label, digest, own, [known.picture(root, name) for name in pictures]]


def _decisive(row: list[Any]) -> bytes:
    """Return what a row adds to the digest. Disks differ in the Unicode form of names."""
    label, digest, _, pictures = row
    name = label if isinstance(label, int) else normalize("NFC", label)
    return json.dumps(
        [name, digest, [[normalize("NFC", name), times[0], each] for name, times, each in pictures]]
    ).encode()


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
        path = os.path.join(root, name)  # noqa: PTH118
        times = times_of(path)
        before = self._find(name)
        return [name, times, before[1] if before and before[0] == times else _picture_hash(path)]

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


def _picture_hash(path: str) -> str:
    """Return the hash of a file, or if it is longer than two ends of END_BYTES, of these ends; "" without a file."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            content = file.read(2 * END_BYTES)
            size = os.fstat(file.fileno()).st_size
            if size > 2 * END_BYTES:
                file.seek(size - END_BYTES)
                content = content[:END_BYTES] + file.read(END_BYTES)
    except (OSError, ValueError):
        return ""
    return blake2b(content, digest_size=6).hexdigest()
