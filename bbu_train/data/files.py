"""The files that each data set of conf/data reads, without reading what is in the pictures. Nothing here needs torch.

A data set whose `_target_` is `bbu_train.data.<...>.<name>.load` has its function `<name>` here. It takes the values of
that config and returns DataFiles, or None if nothing of the user's is read.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bbu_train.data.annotations import check_root, file_under, root_of, split_problem
from bbu_train.data.encodings import codec_of
from bbu_train.data.findings import describe_format
from bbu_train.data.voc_annotation import parse
from bbu_train.data.voc_files import NamedFiles, PictureFinder, list_path, name_of, read_split
from bbu_train.errors import all_problems
from bbu_train.types.files import Annotation, DataFiles

FILENAME = re.compile(r"<filename>([^<&\0]*)</filename>", re.IGNORECASE)
IMAGES = re.compile(rb'"images"\s*:\s*\[\s*"([^"\\]*)"\s*\]')


def jsonl(*, root: str | None, train: str, validation: str, **_values: Any) -> DataFiles:
    """See `jsonl.load`. An annotation is a line; its pictures are those of the student and of fixed teachers."""
    folder = root_of(root, train, validation)
    paths = {key: file_under(folder, name) for key, name in _splits(train, validation)}
    _check_splits("jsonl", folder, paths, train, validation)
    splits = {key: partial(_lines, path) for key, path in paths.items()}
    return DataFiles(folder, splits, tuple(paths.values()), listed=())


def voc(*, root: str | None, train: str, validation: str, **_values: Any) -> DataFiles:
    """See `voc.load`. Annotations are the split's list itself, then the file of each name that it lists.

    Which of several pictures is read is for `voc.load` to decide. Here they are all that may be the annotation's own.
    """
    folder = check_root(root, "JPEGImages, Annotations, ImageSets/Main", "voc")
    lists = {key: list_path(folder, name) for key, name in _splits(train, validation)}
    _check_splits("voc", folder, lists, train, validation)
    annotations = NamedFiles(folder / "Annotations", (".xml",))
    pictures = PictureFinder(folder / "JPEGImages", annotations)
    splits = {key: partial(_listed, folder, path, annotations, pictures) for key, path in lists.items()}
    watched = (*lists.values(), annotations.folder, pictures.pictures.folder)
    return DataFiles(folder, splits, watched, listed=(annotations.listed, pictures.pictures.listed))


def synthetic(**_values: Any) -> None:
    """Synthetic images follow from the values of their config, which are part of a run's identity themselves."""


def overfit(**_values: Any) -> None:
    """Its samples are those of its `source`, which is a data set of its own."""


def _splits(train: str, validation: str) -> tuple[tuple[str, str], ...]:
    return ("train", str(train)), ("validation", str(validation))


def _check_splits(data_format: str, folder: Path, paths: Mapping[str, Path], train: str, validation: str) -> None:
    """Raise InputError that lists the files of splits that cannot be opened."""
    problems = [split_problem(folder, key, name, paths[key]) for key, name in _splits(train, validation)]
    if found := [problem for problem in problems if problem is not None]:
        remedy = f"Give the files with data.train= and data.validation=. {describe_format(data_format)}"
        raise all_problems(f"The data in {folder}", found, remedy)


def _lines(path: Path) -> Iterator[Annotation]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield Annotation(number, line, _pictures_of_line(line))


def _pictures_of_line(line: bytes) -> tuple[str, ...]:
    """Return what a line names as pictures; of a line that the reader will refuse, what can be found.

    Lines in the usual form are searched, not parsed, which takes as long as all the rest.
    """
    number = 0 if b"\\u00" in line else line.count(b'"images"')  # an ASCII letter may be escaped, also in a key
    first = IMAGES.search(line) if number == 1 else None
    found = [first[1]] if first else IMAGES.findall(line)
    if found and len(found) == number:
        return tuple(name.decode("utf-8", "surrogateescape") for name in found)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(value, dict):
        return ()
    teachers = value.get("teachers")
    entries = [value, value.get("student"), *(teachers if isinstance(teachers, list) else ())]
    images = [entry.get("images") for entry in entries if isinstance(entry, dict)]
    names = [name for each in images for name in (each if isinstance(each, list) else [each])]
    return tuple(name for name in names if isinstance(name, str))


def _listed(folder: Path, path: Path, annotations: NamedFiles, pictures: PictureFinder) -> Iterator[Annotation]:
    content = path.read_bytes()
    yield Annotation(path.relative_to(folder).as_posix(), content, ())
    with suppress(UnicodeDecodeError):  # for the reader to report
        for line in read_split(content):
            yield _annotation(folder, name_of(line, annotations), annotations, pictures)


def _annotation(folder: Path, name: str, annotations: NamedFiles, pictures: PictureFinder) -> Annotation:
    """Return the annotation of a name, with every picture that may be its own; without content if there is none."""
    files = annotations.find(name)
    path = files[0] if files else folder / "Annotations" / f"{name}.xml"
    try:
        content = path.read_bytes()
    except (OSError, ValueError):  # for the reader to report; ValueError: a name that no file can have
        content = b""
    filename = _filename_in(path, content) if content else ""
    found = dict.fromkeys(pictures.candidates(name, filename))
    return Annotation(_below(folder, path), content, tuple(_below(folder, picture) for picture in found))


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _filename_in(path: Path, content: bytes) -> str:
    """Return the <filename> of an annotation; the empty string if it has none, or if the reader will refuse it.

    Annotations in the usual form are searched, not parsed, which takes longer.
    """
    try:
        text = content.decode(codec_of(content))
        found = FILENAME.search(text)
        if found and "<!" not in text and text.lower().count("filename") == 2:  # in its two tags
            return found[1].strip()
        return (parse(path).findtext("filename") or "").strip()
    except (LookupError, ValueError):
        return ""
