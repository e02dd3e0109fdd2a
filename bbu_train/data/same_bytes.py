"""Picture files with the same bytes: one file, a link to it or a copy, under whatever name."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path

from bbu_train.types.samples import Picture

NUM_THREADS = 8
CHUNK_SIZE = 256  # files that a thread takes at a time
HEAD_BYTES = 4096  # two photographs of the same size in bytes nearly always differ in them


def first_with_same_bytes(picture: Picture, others: Iterable[Picture]) -> Picture | None:
    """Return the first of `others` whose file holds the bytes of the picture's: the same file, a link to it or a copy.

    A picture may be a teacher, drawn or fixed by the data, only if this is None for the student and other teachers.
    """
    return next((other for other in others if _has_same_bytes(picture.path, other.path)), None)


def first_of_each(paths: Iterable[Path]) -> dict[Path, Path]:
    """Return, for each path, the first of `paths` with the same bytes: mostly the path itself.

    Files are compared by size; among equals by their first bytes; among equals by a hash of the whole. A file that
    cannot be read equals no other.
    """
    first = {path: path for path in paths}
    groups = [list(first)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for key in (_num_bytes, _head, _digest):
            groups = _split_by(key, groups, threads)
    return first | {path: group[0] for group in groups for path in group}


def _split_by(
    key: Callable[[Path], Hashable], groups: Sequence[Sequence[Path]], threads: ThreadPoolExecutor
) -> list[list[Path]]:
    """Split each group by the key of its files, and return the new groups of at least two."""

    def keys_of(paths: Sequence[Path]) -> list[Hashable]:
        return [_key_or_path(key, path) for path in paths]

    paths = [path for group in groups for path in group]
    chunks = [paths[i : i + CHUNK_SIZE] for i in range(0, len(paths), CHUNK_SIZE)]
    keys = chain.from_iterable(threads.map(keys_of, chunks))
    split: dict[Hashable, list[Path]] = defaultdict(list)
    for number, group in enumerate(groups):
        for path in group:
            split[number, next(keys)].append(path)
    return [group for group in split.values() if len(group) > 1]


def _key_or_path(key: Callable[[Path], Hashable], path: Path) -> Hashable:
    try:
        return key(path)
    except OSError:
        return path


def _has_same_bytes(a: Path, b: Path) -> bool:
    return a == b or (_num_bytes(a) == _num_bytes(b) and _digest(a) == _digest(b))


@cache
def _num_bytes(path: Path) -> int:
    return path.stat().st_size


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


@cache
def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
