"""The record of a data set: every annotation and picture by its hash, as rows in a gzip file of JSON.

    {"watched": [[path, Times], ...]}         # DataFiles.watched
    {"split": "train", "source": 0}
    [label, hash, Times of its own file or null, [RecordedPicture, ...]]
    ...
    {"listed": [[path, Times], ...]}          # the folders in which files were looked for by name
    {"digest": "..."}                         # without it the file was cut off

A line is a list of several rows. The digest covers everything but times, `watched` and `listed`.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any
from unicodedata import normalize

from bbu_train.runs.picture_hashes import PictureHashes, RecordedPicture, hash_of, path_of
from bbu_train.types.files import NO_FILE, Annotation, DataFiles, times_of

CHUNK_SIZE = 1024  # annotations that are held at a time, and rows of a line
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zlib.error)
"""What reading a record may raise that was cut off, changed, or written by other code."""


def read_rows(path: Path) -> Iterator[Any]:
    """Yield every row. Raises one of DAMAGED if the record is not whole."""
    row = None
    with gzip.open(path, "rt", encoding="ascii") as file:
        for line in file:
            for row in json.loads(line):
                yield row
    if not (isinstance(row, dict) and "digest" in row):
        raise EOFError(f"{path} is cut off")


def rows_of(sources: Sequence[DataFiles], outdated: Path | None) -> Iterator[Any]:
    """Yield the rows of a new record. Hashes of pictures come from an outdated one, if size and times are the same."""
    hashes, digest = PictureHashes(_recorded_pictures(outdated) if outdated else iter(())), hashlib.sha256()
    yield {"watched": watched(sources)}
    for number, source in enumerate(sources):
        root = str(source.root)
        for split, annotations in source.splits.items():
            digest.update(split.encode())
            yield {"split": split, "source": number}
            remaining = annotations()
            while chunk := list(islice(remaining, CHUNK_SIZE)):
                rows = _rows_of_chunk(root, chunk, hashes)
                digest.update(b"".join(map(_decisive, rows)))
                yield from rows
    listed = [hashes.spelling.listed, *(folders for source in sources for folders in source.listed)]
    yield {"listed": [[str(path), times] for folders in listed for path, times in folders.items()]}
    yield {"digest": digest.hexdigest()[:16]}


def _rows_of_chunk(root: str, chunk: Sequence[Annotation], hashes: PictureHashes) -> list[Any]:
    pictures = iter(hashes.record(root, [name for annotation in chunk for name in annotation.pictures]))
    return [
        [
            label,
            hash_of(content),
            times_of(path_of(root, label)) if isinstance(label, str) else None,
            list(islice(pictures, len(names))),
        ]
        for label, content, names in chunk
    ]


def write(rows: Iterator[Any], file: IO[bytes]) -> tuple[str, bool]:
    """Write a record. Return its digest, and whether every file that it names exists."""
    is_complete, digest = True, ""
    with gzip.GzipFile("", "wb", 1, file, mtime=0) as record:  # the same data gives the same bytes
        while chunk := list(islice(rows, CHUNK_SIZE)):
            record.write(f"{json.dumps(chunk)}\n".encode())
            for row in chunk:
                if isinstance(row, dict):
                    digest = row.get("digest", "")
                elif row[2] == NO_FILE or any(not picture[0] for picture in row[3]):
                    is_complete = False
    return digest, is_complete


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
                if any(times != times_of(folder) for folder, times in row.get("listed", ())):
                    return None
                root = str(sources[row.get("source", 0)].root)
                continue
            label, _, times, pictures = row
            if times is not None and times != times_of(path_of(root, label)):
                return None
            for picture in pictures:
                if picture[1] != times_of(path_of(root, picture[-1])):
                    return None
    except DAMAGED:
        pass
    return None


def watched(sources: Sequence[DataFiles]) -> list[Any]:
    return [[str(path.absolute()), times_of(path)] for source in sources for path in source.watched]


def _recorded_pictures(path: Path) -> Iterator[RecordedPicture]:
    """Yield the pictures of a record, as far as it can be read."""
    try:
        for row in read_rows(path):
            if isinstance(row, list):
                yield from row[3]
    except DAMAGED:
        return


def _decisive(row: list[Any]) -> bytes:
    """Return what an annotation adds to the digest. Disks differ in the Unicode form of names."""
    label, content, _, pictures = row
    facts = [f"{name}\0{times[0]}\0{digest}" for digest, times, name, *_ in pictures]
    text = "\0".join([f"{label}", content, *facts, "\n"])
    return (text if text.isascii() else normalize("NFC", text)).encode("utf-8", "surrogatepass")
