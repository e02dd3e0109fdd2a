"""The files that a data set reads, as `data.files` names them for `runs.data_fingerprint`. Nothing here needs torch."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

Times = list[int]
"""Size in bytes, and the times of the last change of the content and of the inode, in nanoseconds."""

NO_FILE: Times = [-1, 0, 0]


def times_of(path: str | os.PathLike[str]) -> Times:
    """Return the Times of a file or a folder; NO_FILE if there is none, or if it cannot be asked for."""
    try:
        return as_times(os.stat(path))  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return NO_FILE


def as_times(status: os.stat_result) -> Times:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class Annotation(NamedTuple):
    """One sample, or one file that decides which samples a split has.

    label     number of the line in the split's file, from 1; or the path of the annotation's own file, under the root
    content   the bytes of that line or file
    pictures  as the annotation names them: relative to the root, or absolute
    """

    label: int | str
    content: bytes
    pictures: tuple[str, ...]


class DataFiles(NamedTuple):
    """A data set under `root`.

    splits   what yields the annotations of each split, in the order of the samples
    watched  files and folders; while they and the folders in `listed` keep their size and times, the annotations with a
             number as label stay, and the others name the same pictures unless their own file changes
    listed   the folders that `splits` have listed so far to find files by their names, with their Times before that;
             a folder that did not exist is one of them
    """

    root: Path
    splits: Mapping[str, Callable[[], Iterator[Annotation]]]
    watched: tuple[Path, ...]
    listed: tuple[Mapping[Path, Times], ...]
