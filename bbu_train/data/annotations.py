"""What every reader of annotated pictures checks alike, and the one report of all that is wrong."""

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

NUM_THREADS = 8  # headers wait for the disk or the network; more threads than this only wait for each other
PORTION = 32  # lines or files that a thread takes at a time
BAD_BOXES = ("error", "drop")

Box = tuple[float, float, float, float]
Item = TypeVar("Item")


class Problem(NamedTuple):
    """Something wrong, and where. Problems of boxes alone can be settled by leaving the boxes out."""

    text: str
    is_box: bool


class LabelledObject(NamedTuple):
    """An object that is yet to be checked; `label` names it in messages, such as "object 3 (RBC)"."""

    label: str
    object: Object


class PictureSizes:
    """Upright sizes of pictures; each header is read once, however often its picture is named."""

    def __init__(self):
        self._found: dict[Path, tuple[int, int] | str] = {}

    def __call__(self, path: Path) -> tuple[int, int] | str:
        """(width, height) in pixels, or what is wrong with the file."""
        if path not in self._found:
            try:
                self._found[path] = read_header(path)
            except UnreadablePicture as error:
                self._found[path] = str(error)
        return self._found[path]


def existing_folder(root: str | Path | None, bad_boxes: str, holds: str) -> Path:
    """`root` as a path, after a check of both keys; `holds` says what the folder is expected to hold."""
    if bad_boxes not in BAD_BOXES:
        raise InputError(f"data.bad_boxes={bad_boxes}: expected one of {', '.join(BAD_BOXES)}.")
    if not root:
        raise InputError(f"data.root is not set. Give the folder that holds {holds}: data.root=/path")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.root={root}: no such folder. Give the one that holds {holds}: data.root=/path")
    return folder


def read_all(
    items: Iterable[Item], read_one: Callable[[Item], tuple[Sample | None, list[Problem]]]
) -> tuple[list[Sample], list[Problem]]:
    """Samples and problems of all items, in their order, read by several threads."""
    samples, problems = [], []
    portions = _portions(items)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        while in_flight := list(islice(portions, 4 * NUM_THREADS)):  # bounds the memory of a large data set
            for portion in threads.map(lambda portion: [read_one(item) for item in portion], in_flight):
                for sample, found in portion:
                    samples += [sample] if sample else []
                    problems += found
    return samples, problems


def _portions(items: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(items)
    while portion := list(islice(remaining, PORTION)):
        yield portion


def checked_picture(
    where: str, path: Path, objects: Iterable[LabelledObject], sizes: PictureSizes, problems: list[Problem]
) -> Picture | None:
    """The picture with its good boxes, or None where its file cannot be used; adds to `problems`."""
    size = sizes(path)
    if isinstance(size, str):
        problems.append(Problem(f"{where}: {size}", is_box=False))
        size = None
    kept = []
    for label, candidate in objects:
        wrong = box_problem(candidate.box_xyxy, size)
        if wrong:
            problems.append(Problem(f"{where} {label}: {wrong}", is_box=True))
        else:
            kept.append(Object(candidate.box_xyxy, _canonical(candidate.description)))
    return Picture(path, *size, tuple(kept)) if size else None


def _canonical(description: str) -> str:
    """NFC, as Qwen's tokenizer writes it: or a caption would never equal the description that it was learned from.

    Many objects share one description, so equal ones are kept once.
    """
    return intern(normalize("NFC", description))


def box_problem(box_xyxy: Box, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a box in a picture of (width, height), where known. Touching the edges is inside."""
    width, height = size or (sys.float_info.max, sys.float_info.max)
    x1, y1, x2, y2 = box_xyxy
    if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
        return None
    shown = json.dumps([int(value) if value.is_integer() else value for value in box_xyxy])
    if not all(math.isfinite(value) for value in box_xyxy):
        return f"box that is not finite {shown}"
    if x1 > x2 or y1 > y2:
        return f"inverted box {shown}, expected [left, top, right, bottom]"
    if x1 == x2 or y1 == y2:
        return f"zero-area box {shown}"
    return f"box {shown} outside its picture" + (f" of {width} x {height} pixels" if size else "")


def settle(root: Path, problems: list[Problem], bad_boxes: str) -> int:
    """The number of boxes left out, each logged; raises InputError with all problems if others remain."""
    leave_out = bad_boxes == "drop"
    dropped = [problem.text for problem in problems if problem.is_box and leave_out]
    fatal = [problem.text for problem in problems if not (problem.is_box and leave_out)]
    if fatal:
        remedy = "Mend what is listed; lines and objects are counted from 1."
        if not leave_out and any(problem.is_box for problem in problems):
            remedy += " Or leave the bad boxes out, counted and logged, with data.bad_boxes=drop."
        raise all_problems(f"The data in {root}", fatal, remedy)
    for text in dropped:
        logger.warning("dropped: %s", text)
    return len(dropped)
