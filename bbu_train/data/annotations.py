"""What all readers of annotated pictures share: the checks, the text of descriptions, and reading in threads."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from sys import intern
from typing import NamedTuple, TypeVar
from unicodedata import category, normalize

from bbu_train.data.boxes import box_problem, clip, format_box
from bbu_train.data.findings import Action, Finding, describe_format
from bbu_train.errors import InputError, listed
from bbu_train.images.files import SpellingOnDisk, UnreadablePicture, read_header
from bbu_train.runtime.file_names import printable
from bbu_train.types.samples import Object, Picture, Sample

NUM_THREADS = 8  # reading headers waits for the disk or the network; more threads only wait for each other
CHUNK_SIZE = 32  # lines or files that a thread takes at a time
BAD_BOXES = ("error", "drop", "clip")
NO_ROOT = Path()
"""Takes the place of data.root if that is not set. Relative paths are then refused."""

# Blanks, and characters without width that editors and tools leave behind, such as a byte order mark.
BLANKS = r"[\s\u200b\u200e\u200f\u2060\ufeff]*"
UNSEEN = ("Zs", "Zl", "Zp", "Cc", "Cf")  # Unicode categories: separators, control and format characters
LEVEL_BREAK = re.compile(f"{BLANKS}/{BLANKS}")
OUTER_BLANKS = re.compile(rf"\A{BLANKS}|{BLANKS}\Z")

Item = TypeVar("Item")


class LabelledObject(NamedTuple):
    """An object that is not checked yet; `label` names it in messages, such as "object 3 (RBC)"."""

    label: str
    object: Object


class Reading(NamedTuple):
    """What a reader makes of one line or file.

    sample    None if it cannot be used; `findings` then say why
    findings  what is wrong or suspicious in it
    unused    how often it has each key or element that the reader does not use, such as {"object/pose": 3}
    """

    sample: Sample | None
    findings: Sequence[Finding]
    unused: Mapping[str, int]


@lru_cache(maxsize=100_000)
def clean_description(text: str) -> str:
    """Return a description in Unicode NFC, without blanks around it or around one of its levels.

    "screw / m4 " and "screw/m4" are thus one description of one class. Qwen's tokenizer normalises to NFC too, so a
    decoded caption can equal the result. It is interned, because many objects share a description.
    """
    return intern(OUTER_BLANKS.sub("", LEVEL_BREAK.sub("/", normalize("NFC", text))))


def has_text(description: str) -> bool:
    """Whether a cleaned description has a character that can be seen, other than the slashes between levels."""
    return any(character not in "/\u3164" and category(character) not in UNSEEN for character in description)


class PictureChecker:
    """Checks pictures and their boxes, as data.bad_boxes says:

    error  a bad box is an error
    drop   it is left out
    clip   a box that is partly outside its picture is cut at the edges; any other bad box is left out

    Each header is read once, however many lines name its picture. Raises InputError for an unknown `bad_boxes`.
    """

    def __init__(self, bad_boxes: str) -> None:
        check_choice("bad_boxes", bad_boxes, BAD_BOXES)
        self.bad_boxes = bad_boxes
        self._sizes: dict[Path, tuple[int, int] | str] = {}
        self._spelling = SpellingOnDisk()

    def check(
        self, where: str, path: Path, objects: Iterable[LabelledObject], findings: list[Finding]
    ) -> Picture | None:
        """Return the picture with its usable boxes, or None if its file cannot be used. Adds to `findings`."""
        if path not in self._sizes:
            path = self._spelling(path)
        size = self._size(path)
        if isinstance(size, str):
            findings.append(Finding(Action.ERROR, f"{where}: {size}", "pictures that cannot be read"))
            size = None
        usable = [self._usable(f"{where} {label}", each, size, findings) for label, each in objects]
        return Picture(path, *size, tuple(each for each in usable if each)) if size else None

    def bad_box(self, text: str, reason: str) -> Finding:
        """Return the finding of a box that no part of can be used."""
        return Finding(Action.BAD_BOX if self.bad_boxes == "error" else Action.DROPPED, text, reason)

    def _usable(
        self, where: str, candidate: Object, size: tuple[int, int] | None, findings: list[Finding]
    ) -> Object | None:
        problem = box_problem(candidate.box_xyxy, size)
        if problem is None:
            return candidate
        inside = clip(candidate.box_xyxy, size) if size and self.bad_boxes == "clip" else None
        if inside is None:
            findings.append(self.bad_box(f"{where}: {problem.text}", problem.reason))
            return None
        findings.append(
            Finding(Action.CLIPPED, f"{where}: {problem.text}, cut to {format_box(inside)}", problem.reason)
        )
        return replace(candidate, box_xyxy=inside)

    def _size(self, path: Path) -> tuple[int, int] | str:
        if path not in self._sizes:
            try:
                self._sizes[path] = read_header(path)
            except UnreadablePicture as error:
                self._sizes[path] = printable(str(error))
        return self._sizes[path]


def check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InputError unless data.<key> is one of `choices`."""
    if value not in choices:
        raise InputError(f"data.{key}={value}: expected one of {', '.join(choices)}.")


def check_root(root: str | Path | None, contents: str, data_format: str) -> Path:
    """Return data.root as an existing folder. `contents` says in messages what the folder should hold.

    Raises InputError for a missing folder. `data_format` is the choice of conf/data.
    """
    remedy = f"Give the folder that holds {contents}: data.root=/path. {describe_format(data_format)}"
    if not root:
        raise InputError(f"data.root is not set. {remedy}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.root={root}: no such folder.{_folders_near(folder)} {remedy}")
    return folder


def root_of(root: str | Path | None, train: str, validation: str) -> Path:
    """Return the folder in which relative paths of data=jsonl begin: data.root, or NO_ROOT if it is not set and both
    files are absolute.

    Raises InputError if it is needed and not set, or if there is no such folder.
    """
    if not root and all(file_under(NO_ROOT, name).is_absolute() for name in (train, validation)):
        return NO_ROOT
    return check_root(root, f"{train} and {validation}", "jsonl")


def file_under(folder: Path, name: str) -> Path:
    """Return the path of a split's file: absolute, in the home folder (~), or relative to `folder`."""
    return folder / Path(name).expanduser()


def _folders_near(missing: Path) -> str:
    """Name the folders in the last part of a path that there is, those with names like the missing one first."""
    parent = next(folder for folder in missing.absolute().parents if folder.is_dir())
    name = missing.absolute().relative_to(parent).parts[0]
    with suppress(OSError):
        names = sorted(each.name for each in parent.iterdir() if each.is_dir() and not each.name.startswith("."))
        near = difflib.get_close_matches(name, names)
        return f" {parent} has {listed(near + [each for each in names if each not in near]) or 'no folder'}."
    return ""


def split_problem(folder: Path, key: str, name: str, path: Path) -> str | None:
    """Return why the file of a split, data.<key>=<name>, cannot be read, with the files beside it; None if it can."""
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        beside = sorted(file.name for file in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
        hint = f" There are: {listed(beside)}." if beside else ""
        if path.parent == folder and (folder / "JPEGImages").is_dir():
            hint += " The folder looks like one for data=voc."
        under = f"; it is looked for under data.root={folder}" if path.is_relative_to(folder) else ""
        reason = f"{path} cannot be read ({error.strerror}){under}."
        return f"data.{key}={name}: {reason}{hint}"


def read_all(items: Iterable[Item], read_one: Callable[[Item], Reading]) -> list[Reading]:
    """Return the readings of all items, in their order. Several threads call `read_one`."""
    readings: list[Reading] = []
    chunks = _split(items)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        while in_flight := list(islice(chunks, 4 * NUM_THREADS)):  # bounds the memory of a large data set
            for results in threads.map(lambda chunk: [read_one(item) for item in chunk], in_flight):
                readings += results
    return readings


def _split(items: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, CHUNK_SIZE)):
        yield chunk
