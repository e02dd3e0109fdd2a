"""The files that each data set of conf/data reads, without reading what is in the pictures. Nothing here needs torch.

A data set whose `_target_` is `bbu_train.data.<...>.<name>.load` has its function `<name>` here. It takes the values of
that config and returns DataFiles, or None if nothing of the user's is read.
"""

import codecs
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

from bbu_train.errors import InputError
from bbu_train.types.files import Annotation, DataFiles

FILENAME = re.compile(rb"<(?:\w+:)?filename[^>]*>\s*([^<]*?)\s*<")
IMAGES = re.compile(rb'"images"\s*:\s*\[\s*"([^"\\]*)"\s*\]')
ANNOTATION_SUFFIX = ".xml"


def jsonl(*, root: str | None, train: str, validation: str, **_values: Any) -> DataFiles:
    """See `jsonl.load`. An annotation is a line; its pictures are those of the student and of fixed teachers."""
    folder = _existing_root(root, contents=f"{train} and {validation}")
    paths = {key: _existing_file(folder, key, name, folder / name) for key, name in _splits(train, validation)}
    return DataFiles(folder, {key: partial(_lines, path) for key, path in paths.items()}, tuple(paths.values()))


def voc(*, root: str | None, train: str, validation: str, **_values: Any) -> DataFiles:
    """See `voc.load`. Annotations are the split's list itself, then the file of each name that it lists.

    Which of several pictures is read is for `voc.load` to decide: here they are all files of JPEGImages with the name
    of the annotation, whatever their endings, and the one that its <filename> names.
    """
    folder = _existing_root(root, contents="JPEGImages, Annotations, ImageSets/Main")
    lists = {
        key: _existing_file(folder, key, name, folder / "ImageSets/Main" / f"{name.removesuffix('.txt')}.txt")
        for key, name in _splits(train, validation)
    }
    splits = {key: partial(_listed, folder, path) for key, path in lists.items()}
    return DataFiles(folder, splits, (*lists.values(), folder / "Annotations", folder / "JPEGImages"))


def synthetic(**_values: Any) -> None:
    """Synthetic images follow from the values of their config, which are part of a run's identity themselves."""


def overfit(**_values: Any) -> None:
    """Its samples are those of its `source`, which is a data set of its own."""


def _splits(train: str, validation: str) -> tuple[tuple[str, str], ...]:
    return ("train", str(train)), ("validation", str(validation))


def _existing_root(root: str | None, contents: str) -> Path:
    if not root:
        raise InputError(f"data.root is not set. Give the folder that holds {contents}: data.root=/path")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.root={root}: no such folder. Give the one that holds {contents}: data.root=/path")
    return folder


def _existing_file(folder: Path, key: str, name: str, path: Path) -> Path:
    """Return the path of a split's file. Raises InputError, with the files beside it, if it cannot be opened."""
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        beside = sorted(file.name for file in path.parent.glob(f"*{path.suffix}"))[:20] if path.parent.is_dir() else []
        there = f" There are: {', '.join(beside)}." if beside else ""
        raise InputError(
            f"data.{key}={name}: {path} cannot be read ({error.strerror}); it is looked for under data.root={folder}."
            f"{there}"
        ) from error


def _lines(path: Path) -> Iterator[Annotation]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Annotation(number, line, _pictures_of_line(line.removeprefix(codecs.BOM_UTF8)))


def _pictures_of_line(line: bytes) -> tuple[str, ...]:
    """Return what a line names as pictures; of a line that the reader will refuse, what can be found.

    Lines in the usual form are searched, not parsed, which takes as long as all the rest.
    """
    found = IMAGES.findall(line)
    if found and len(found) == line.count(b'"images"'):
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


def _listed(folder: Path, path: Path) -> Iterator[Annotation]:
    content = path.read_bytes()
    yield Annotation(path.relative_to(folder).as_posix(), content, ())
    annotations, pictures = (_names_by_stem(folder / name) for name in ("Annotations", "JPEGImages"))
    for line in content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").split("\n"):
        if line.strip():
            yield from _listed_name(folder, line.strip(), annotations, pictures)


def _listed_name(
    folder: Path, line: str, annotations: dict[str, list[str]], pictures: dict[str, list[str]]
) -> Iterator[Annotation]:
    """Yield the annotation that a line of a list names: `name`, `name.jpg`, or `name 1` in the list of a class."""
    keys = [_key(text) for word in (line, line.split(maxsplit=1)[0]) for text in (word, Path(word).stem)]
    key = next((key for key in keys if key in annotations or key in pictures), keys[0])
    found = [name for name in annotations.get(key, ()) if name.lower().endswith(ANNOTATION_SUFFIX)]
    for name in found or [f"{line}{ANNOTATION_SUFFIX}"]:
        path = folder / "Annotations" / name
        content = path.read_bytes() if found else b""
        names = dict.fromkeys([*pictures.get(key, ()), *_named_in(folder, content)])
        yield Annotation(f"Annotations/{name}", content, tuple(f"JPEGImages/{name}" for name in names))


def _named_in(folder: Path, content: bytes) -> list[str]:
    match = FILENAME.search(content)
    name = match[1].decode("utf-8", "surrogateescape") if match else ""
    is_name = name and "\0" not in name and (folder / "JPEGImages" / name).is_file()
    return [name] if is_name else []


def _names_by_stem(folder: Path) -> dict[str, list[str]]:
    """Return the names in a folder by their key, those of one key sorted: file systems list in any order."""
    names: dict[str, list[str]] = {}
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                names.setdefault(_key(os.path.splitext(entry.name)[0]), []).append(entry.name)  # noqa: PTH122
    return {key: sorted(each) for key, each in names.items()}


def _key(name: str) -> str:
    """Names that differ only in their Unicode form are one: disks that were written by macOS have them in NFD."""
    return normalize("NFC", name)
