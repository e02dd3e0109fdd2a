"""Reading annotated pictures from JSON Lines: one sample per line, in one of two forms:

    {"teachers": [{"images": [...], "objects": [...]}, ...], "student": {"images": [...], "objects": [...]}}
    {"images": [...], "objects": [...], ...}

"images" holds one path, absolute or relative to the root. An object is {"bbox_2d": [x1, y1, x2, y2], "desc":
"type/property/extra"}, in absolute pixels of the upright (EXIF-applied) picture. The first form fixes the teachers; an
empty list means none. The second form leaves them to be drawn from the pool, and its further keys are ignored.
"""

import codecs
import json
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from bbu_train.data.annotations import (
    Box,
    LabelledObject,
    PictureSizes,
    Problem,
    check_picture,
    check_root,
    drop_or_raise,
    read_all,
)
from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.types.samples import Object, Picture, Sample


def load(root: str | Path | None, train: str, validation: str, bad_boxes: str, teachers: TeacherDraw) -> Splits:
    """Read the files `train` and `validation` under `root`. Sample ids are "<file name>:<line>".

    A box is bad if it is outside its picture, inverted, of zero area, not finite or not four numbers. With `bad_boxes`
    "drop" it is left out, with "error" it is a problem. Raises InputError with all problems of both files.
    """
    folder = check_root(root, bad_boxes, contents=f"{train} and {validation}")
    sizes = PictureSizes()
    train_samples, train_problems = _read_file(folder, "train", train, sizes)
    validation_samples, validation_problems = _read_file(folder, "validation", validation, sizes)
    num_dropped_boxes = drop_or_raise(folder, train_problems + validation_problems, bad_boxes)
    return Splits(tuple(train_samples), tuple(validation_samples), teachers, num_dropped_boxes)


def _read_file(folder: Path, key: str, name: str, sizes: PictureSizes) -> tuple[list[Sample], list[Problem]]:
    path = folder / name
    if not path.is_file():
        return [], [Problem(f"data.{key}={name}: no such file under data.root={folder}", is_box=False)]
    samples, problems = read_all(_numbered_lines(path), partial(_read_line, folder, path.name, sizes))
    if not samples and not problems:
        problems = [Problem(f"{path.name}: empty file (data.{key}={name})", is_box=False)]
    return samples, problems


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                yield number, text


def _read_line(
    folder: Path, file_name: str, sizes: PictureSizes, numbered: tuple[int, bytes]
) -> tuple[Sample | None, list[Problem]]:
    number, text = numbered
    reader = _LineReader(f"{file_name}:{number}", folder, sizes)
    return reader.read(text), reader.problems


class _LineReader:
    """Reads one line and collects its problems. `where` names the line, such as "train.jsonl:12"."""

    def __init__(self, where: str, folder: Path, sizes: PictureSizes) -> None:
        self.where = where
        self.folder = folder
        self.sizes = sizes
        self.problems: list[Problem] = []

    def read(self, text: bytes) -> Sample | None:
        value = self._parse(text)
        if value is None:
            return None
        if "student" not in value and "teachers" not in value:
            student, teachers = self._read_picture(self.where, value, allow_further=True), None
        else:
            student, teachers = self._read_student_and_teachers(value)
        return Sample(self.where, student, teachers) if student else None

    def _parse(self, text: bytes) -> dict[str, Any] | None:
        """Return the JSON object of a line, or None with a problem."""
        try:
            value = json.loads(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            return self._report(self.where, f"not UTF-8 at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            return self._report(self.where, f"malformed JSON at column {error.colno}: {error.msg}")
        except (ValueError, RecursionError) as error:  # thousands of digits in a number, thousands of levels
            return self._report(self.where, f"malformed JSON: {error}")
        if not isinstance(value, dict):
            return self._report(self.where, f"expected an object {{...}}, found {_show(value)}")
        return value

    def _read_student_and_teachers(self, value: dict[str, Any]) -> tuple[Picture | None, tuple[Picture, ...]]:
        if not self._has_keys(self.where, value, ("teachers", "student"), allow_further=False):
            return None, ()
        student = self._read_picture(f"{self.where} student", value["student"], allow_further=False)
        if not isinstance(value["teachers"], list):
            self._report(self.where, f'"teachers" must be a list, found {_show(value["teachers"])}')
            return student, ()
        teachers = []
        for number, entry in enumerate(value["teachers"], 1):
            teacher = self._read_picture(f"{self.where} teacher {number}", entry, allow_further=False)
            if teacher and student and teacher.path == student.path:
                self._report(f"{self.where} teacher {number}", "is the student's own picture and gives its answer away")
            teachers += [teacher] if teacher else []
        return student, tuple(teachers)

    def _read_picture(self, where: str, entry: object, allow_further: bool) -> Picture | None:
        if not self._has_keys(where, entry, ("images", "objects"), allow_further):
            return None
        images, objects = entry["images"], entry["objects"]
        if not (isinstance(images, list) and len(images) == 1 and isinstance(images[0], str) and images[0].strip()):
            self._report(where, f'"images" must be a list of one path, found {_show(images)}')
            images = None
        if not isinstance(objects, list):
            self._report(where, f'"objects" must be a list, empty if there are none, found {_show(objects)}')
            objects = []
        candidates = [self._read_object(where, f"object {number}", value) for number, value in enumerate(objects, 1)]
        if images is None:
            return None
        readable = [candidate for candidate in candidates if candidate]
        return check_picture(where, self.folder / images[0], readable, self.sizes, self.problems)

    def _read_object(self, where: str, label: str, value: object) -> LabelledObject | None:
        if not self._has_keys(f"{where} {label}", value, ("bbox_2d", "desc"), allow_further=False):
            return None
        description = value["desc"]
        if not isinstance(description, str) or not description.strip():
            self._report(f"{where} {label}", f'"desc" must be text that is not blank, found {_show(description)}')
        elif not _is_unicode(description):
            self._report(f"{where} {label}", f'"desc" holds half a surrogate pair: {_show(description)}')
        box = _four_numbers(value["bbox_2d"])
        if box is None:
            problem = f"box that is not four numbers {_show(value['bbox_2d'])}"
            self.problems.append(Problem(f"{where} {label}: {problem}", is_box=True))
            return None
        return LabelledObject(label, Object(box, str(description)))

    def _has_keys(
        self, where: str, value: object, expected: tuple[str, ...], allow_further: bool
    ) -> TypeGuard[dict[str, Any]]:
        """Whether `value` is an object with the expected keys, and no others unless `allow_further`."""
        if not isinstance(value, dict):
            self._report(where, f"expected an object {{...}} with {_quote(expected)}, found {_show(value)}")
            return False
        missing = [key for key in expected if key not in value]
        unknown = [] if allow_further else [key for key in value if key not in expected]
        if missing:
            self._report(where, f"missing {_quote(missing)}" + (f"; its keys are {_quote(value)}" if value else ""))
        elif unknown:
            self._report(where, f"unknown key {_quote(unknown)}, expected {_quote(expected)}")
        return not missing and not unknown

    def _report(self, where: str, text: str) -> None:
        self.problems.append(Problem(f"{where}: {text}", is_box=False))


def _four_numbers(value: object) -> Box | None:
    """Return `value` as floats, or None if it is not four numbers. Integers too large for a float become infinite."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if any(type(number) not in (int, float) for number in value):  # isinstance(True, int) holds
        return None
    return tuple(map(_as_float, value))


def _as_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _quote(keys: Iterable[str]) -> str:
    return ", ".join(f'"{key}"' for key in keys)


def _show(value: object) -> str:
    """Return the value as JSON, cut to fit into a message."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 80 else f"{text[:77]}..."
