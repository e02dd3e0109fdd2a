"""The checks that all readers of annotated pictures share, and one report of all problems."""

import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from sys import intern
from typing import NamedTuple, TypeVar
from unicodedata import normalize

from bbu_train.errors import InputError, all_problems
from bbu_train.images.files import UnreadablePicture, read_header
from bbu_train.types.samples import Object, Picture, Sample

logger = logging.getLogger(__name__)

NUM_THREADS = 8  # reading headers waits for the disk or the network; more threads only wait for each other
CHUNK_SIZE = 32  # lines or files that a thread takes at a time
BAD_BOXES = ("error", "drop")

Box = tuple[float, float, float, float]
Item = TypeVar("Item")


class Problem(NamedTuple):
    """What is wrong, and where. A problem of a box (`is_box`) can be resolved by dropping that box."""

    text: str
    is_box: bool


class LabelledObject(NamedTuple):
    """An object that is not checked yet; `label` names it in messages, such as "object 3 (RBC)"."""

    label: str
    object: Object


class PictureSizes:
    """Upright sizes of pictures. Each header is read once, however many lines name its picture."""

    def __init__(self) -> None:
        self._sizes: dict[Path, tuple[int, int] | str] = {}

    def __call__(self, path: Path) -> tuple[int, int] | str:
        """Return (width, height) in pixels, or a text that says what is wrong with the file."""
        if path not in self._sizes:
            try:
                self._sizes[path] = read_header(path)
            except UnreadablePicture as error:
                self._sizes[path] = str(error)
        return self._sizes[path]


def check_root(root: str | Path | None, bad_boxes: str, contents: str) -> Path:
    """Return data.root as an existing folder. `contents` says in messages what the folder should hold.

    Raises InputError for a missing folder and for an unknown value of data.bad_boxes.
    """
    if bad_boxes not in BAD_BOXES:
        raise InputError(f"data.bad_boxes={bad_boxes}: expected one of {', '.join(BAD_BOXES)}.")
    if not root:
        raise InputError(f"data.root is not set. Give the folder that holds {contents}: data.root=/path")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.root={root}: no such folder. Give the one that holds {contents}: data.root=/path")
    return folder


def read_all(
    items: Iterable[Item], read_one: Callable[[Item], tuple[Sample | None, list[Problem]]]
) -> tuple[list[Sample], list[Problem]]:
    """Return the samples and problems of all items, in their order. Several threads call `read_one`."""
    samples, problems = [], []
    chunks = _split(items)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        while in_flight := list(islice(chunks, 4 * NUM_THREADS)):  # bounds the memory of a large data set
            for results in threads.map(lambda chunk: [read_one(item) for item in chunk], in_flight):
                for sample, item_problems in results:
                    samples += [sample] if sample else []
                    problems += item_problems
    return samples, problems


def _split(items: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, CHUNK_SIZE)):
        yield chunk


def check_picture(
    where: str, path: Path, objects: Iterable[LabelledObject], sizes: PictureSizes, problems: list[Problem]
) -> Picture | None:
    """Return the picture with its valid boxes, or None if its file cannot be used. Adds to `problems`."""
    size = sizes(path)
    if isinstance(size, str):
        problems.append(Problem(f"{where}: {size}", is_box=False))
        size = None
    valid = []
    for label, candidate in objects:
        problem = box_problem(candidate.box_xyxy, size)
        if problem:
            problems.append(Problem(f"{where} {label}: {problem}", is_box=True))
        else:
            valid.append(Object(candidate.box_xyxy, _normalize(candidate.description)))
    return Picture(path, *size, tuple(valid)) if size else None


def _normalize(description: str) -> str:
    """Return the description in Unicode NFC, so that a decoded caption can equal it.

    Qwen's tokenizer normalises to NFC too. The string is interned, because many objects share a description.
    """
    return intern(normalize("NFC", description))


def box_problem(box_xyxy: Box, size: tuple[int, int] | None) -> str | None:
    """Return what is wrong with a box, or None. It must lie in its picture of (width, height), if that is known.

    A box that touches the edges is inside.
    """
    width, height = size or (sys.float_info.max, sys.float_info.max)
    x1, y1, x2, y2 = box_xyxy
    if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
        return None
    box = json.dumps([int(value) if value.is_integer() else value for value in box_xyxy])
    if not all(math.isfinite(value) for value in box_xyxy):
        return f"box that is not finite {box}"
    if x1 > x2 or y1 > y2:
        return f"inverted box {box}, expected [left, top, right, bottom]"
    if x1 == x2 or y1 == y2:
        return f"zero-area box {box}"
    return f"box {box} outside its picture" + (f" of {width} x {height} pixels" if size else "")


def drop_or_raise(root: Path, problems: list[Problem], bad_boxes: str) -> int:
    """Log the boxes that data.bad_boxes=drop leaves out and return their number.

    Raises InputError with all problems if any others remain.
    """
    should_drop = bad_boxes == "drop"
    dropped = [problem.text for problem in problems if problem.is_box and should_drop]
    fatal = [problem.text for problem in problems if not (problem.is_box and should_drop)]
    if fatal:
        remedy = "Correct the problems listed; lines and objects are counted from 1."
        if not should_drop and any(problem.is_box for problem in problems):
            remedy += " Or leave out the bad boxes, counted and logged, with data.bad_boxes=drop."
        raise all_problems(f"The data in {root}", fatal, remedy)
    for text in dropped:
        logger.warning("dropped: %s", text)
    return len(dropped)
