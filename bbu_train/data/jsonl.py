"""Reading annotated pictures from JSON Lines, one sample per line. conf/data/jsonl.yaml describes the format."""

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bbu_train.data.annotations import PictureChecker, Reading, file_under, read_all, root_of, split_problem
from bbu_train.data.findings import Action, Finding, raise_or_log
from bbu_train.data.jsonl_line import LineReader
from bbu_train.data.splits import Splits, splits_of
from bbu_train.data.teachers import TeacherDraw
from bbu_train.runtime.file_names import printable

MAX_FIRST_LINE = 1000  # bytes that tell the format


def load(root: str | Path | None, train: str, validation: str, bad_boxes: str, teachers: TeacherDraw) -> Splits:
    """Read the files `train` and `validation` under `root`, which may be None if both are absolute, as well as the
    pictures that they name. Sample ids are "<file name>:<line>".

    A box is bad if it is outside its picture, inverted, of zero area, not finite or not four numbers. `bad_boxes` says
    what happens to it: see `PictureChecker`. Raises InputError with all problems of both files.
    """
    checker = PictureChecker(bad_boxes)
    folder = root_of(root, train, validation)
    readings = {
        "train": _read_file(folder, "train", train, checker),
        "validation": _read_file(folder, "validation", validation, checker),
    }
    raise_or_log(
        folder, [finding for split in readings.values() for reading in split for finding in reading.findings], "jsonl"
    )
    return splits_of(readings, teachers)


def _read_file(folder: Path, key: str, name: str, checker: PictureChecker) -> list[Reading]:
    path = file_under(folder, name)
    if (problem := split_problem(folder, key, name, path)) is not None:
        return [_error(problem, "files of splits")]
    if (problem := _format_problem(path)) is not None:
        return [_error(f"{printable(path.name)} (data.{key}={name}): {problem}", "files of splits")]
    read_line = partial(_read_line, folder, printable(path.name), checker)
    readings = read_all(_numbered_lines(path), read_line)
    return readings or [_error(f"{path.name}: empty file (data.{key}={name})", "files of splits")]


def _format_problem(path: Path) -> str | None:
    """Return why a file as a whole is no JSON Lines file in UTF-8, or None."""
    with path.open("rb") as file:
        first = file.readline(MAX_FIRST_LINE).removeprefix(codecs.BOM_UTF8).strip()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or first[:2].count(0) == 1:
        return "it is in UTF-16; save it as UTF-8"
    if first in (b"[", b"{") or first.startswith(b"[{"):
        return "it is one JSON document; expected one sample {...} per line, without [ and ] around all"
    return None


def _error(text: str, kind: str) -> Reading:
    return Reading(None, [Finding(Action.ERROR, text, kind)], {})


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(codecs.BOM_UTF8)  # on any line, if files were joined
            if text.strip():
                yield number, text


def _read_line(folder: Path, file_name: str, checker: PictureChecker, numbered: tuple[int, bytes]) -> Reading:
    number, text = numbered
    return LineReader(f"{file_name}:{number}", folder, checker).read(text)
