"""The files that a data set reads, as `data.files` names them for `runs.data_fingerprint`. Nothing here needs torch."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


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
    watched  files and folders; while their size and times stay, the annotations with a number as label stay, and the
             others name the same pictures unless their own file changes
    """

    root: Path
    splits: Mapping[str, Callable[[], Iterator[Annotation]]]
    watched: tuple[Path, ...]
