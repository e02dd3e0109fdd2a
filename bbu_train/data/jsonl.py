"""Annotated pictures in JSON Lines, one sample a line, in two forms:

    {"teachers": [{"images": [...], "objects": [...]}, ...], "student": {"images": [...], "objects": [...]}}
    {"images": [...], "objects": [...], ...}

"images" holds one path, absolute or under the root. An object is {"bbox_2d": [x1, y1, x2, y2], "desc":
"type/property/extra"} in absolute pixels of the upright (EXIF-applied) picture. The first form fixes the teachers,
also an empty list of them; the second draws them from the pool, and its further keys are ignored.
"""

import codecs
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bbu_train.data.annotations import (
    Box,
    LabelledObject,
    PictureSizes,
    Problem,
    checked_picture,
    existing_folder,
    read_all,
    settle,
)
from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.types.samples import Object, Picture, Sample


def load(root: str | Path | None, train: str, validation: str, bad_boxes: str, teachers: TeacherDraw) -> Splits:
    """Read two files under `root`; sample ids are "<file name>:<line>".

    `bad_boxes` is "error" or "drop": leave out boxes that are outside their picture, inverted, of zero area, not
    finite or not four numbers. Raises InputError with all problems of both files.
    """
    folder = existing_folder(root, bad_boxes, holds=f"{train} and {validation}")
    sizes = PictureSizes()
    train_samples, train_problems = _read_file(folder, "train", train, sizes)
    validation_samples, validation_problems = _read_file(folder, "validation", validation, sizes)
    num_dropped_boxes = settle(folder, train_problems + validation_problems, bad_boxes)
    return Splits(tuple(train_samples), tuple(validation_samples), teachers, num_dropped_boxes)


def _read_file(folder: Path, key: str, name: str, sizes: PictureSizes) -> tuple[list[Sample], list[Problem]]:
    path = folder / name
    if not path.is_file():
        wrong = f"data.{key}={name}: no such file under data.root={folder}"
        return [], [Problem(wrong, is_box=False)]
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
    line = _Line(f"{file_name}:{number}", folder, sizes)
    return line.sample(text), line.problems


class _Line:
    """One line on its way to a sample: collects all that is wrong with it, where `where` is "train.jsonl:12"."""

    def __init__(self, where: str, folder: Path, sizes: PictureSizes):
        self.where = where
        self.folder = folder
        self.sizes = sizes
        self.problems: list[Problem] = []

    def sample(self, text: bytes) -> Sample | None:
        value = self._parsed(text)
        if not isinstance(value, dict):
            return None
        if "student" not in value and "teachers" not in value:
            student, teachers = self._picture(self.where, value, further_keys=True), None
        else:
            student, teachers = self._student_and_teachers(value)
        return Sample(self.where, student, teachers) if student else None

    def _parsed(self, text: bytes) -> object:
        try:
            value = json.loads(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            return self._wrong(self.where, f"not UTF-8 at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            return self._wrong(self.where, f"malformed JSON at column {error.colno}: {error.msg}")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a nesting of thousands
            return self._wrong(self.where, f"malformed JSON: {error}")
        if not isinstance(value, dict):
            return self._wrong(self.where, f"expected an object {{...}}, found {_shown(value)}")
        return value

    def _student_and_teachers(self, value: dict) -> tuple[Picture | None, tuple[Picture, ...]]:
        if not self._keys(self.where, value, ("teachers", "student"), further_keys=False):
            return None, ()
        student = self._picture(f"{self.where} student", value["student"], further_keys=False)
        if not isinstance(value["teachers"], list):
            self._wrong(self.where, f'"teachers" must be a list, found {_shown(value["teachers"])}')
            return student, ()
        teachers = []
        for number, entry in enumerate(value["teachers"], 1):
            teacher = self._picture(f"{self.where} teacher {number}", entry, further_keys=False)
            if teacher and student and teacher.path == student.path:
                self._wrong(f"{self.where} teacher {number}", "is the student's own picture and gives its answer away")
            teachers += [teacher] if teacher else []
        return student, tuple(teachers)

    def _picture(self, where: str, entry: object, further_keys: bool) -> Picture | None:
        if not self._keys(where, entry, ("images", "objects"), further_keys):
            return None
        images, objects = entry["images"], entry["objects"]
        if not (isinstance(images, list) and len(images) == 1 and isinstance(images[0], str) and images[0].strip()):
            self._wrong(where, f'"images" must be a list of one path, found {_shown(images)}')
            images = None
        if not isinstance(objects, list):
            self._wrong(where, f'"objects" must be a list, empty where there is nothing, found {_shown(objects)}')
            objects = []
        found = [self._object(where, f"object {number}", value) for number, value in enumerate(objects, 1)]
        if images is None:
            return None
        good = [candidate for candidate in found if candidate]
        return checked_picture(where, self.folder / images[0], good, self.sizes, self.problems)

    def _object(self, where: str, label: str, value: object) -> LabelledObject | None:
        if not self._keys(f"{where} {label}", value, ("bbox_2d", "desc"), further_keys=False):
            return None
        description = value["desc"]
        if not isinstance(description, str) or not description.strip():
            self._wrong(f"{where} {label}", f'"desc" must be a text that is not blank, found {_shown(description)}')
        elif not _is_unicode(description):
            self._wrong(f"{where} {label}", f'"desc" holds half a surrogate pair: {_shown(description)}')
        box = _four_numbers(value["bbox_2d"])
        if box is None:
            wrong = f"box that is not four numbers {_shown(value['bbox_2d'])}"
            self.problems.append(Problem(f"{where} {label}: {wrong}", is_box=True))
            return None
        return LabelledObject(label, Object(box, str(description)))

    def _keys(self, where: str, value: object, wanted: tuple[str, ...], further_keys: bool) -> bool:
        """Whether `value` is an object with the wanted keys, and with no others unless `further_keys`."""
        if not isinstance(value, dict):
            self._wrong(where, f"expected an object {{...}} with {_quoted(wanted)}, found {_shown(value)}")
            return False
        missing = [key for key in wanted if key not in value]
        unknown = [] if further_keys else [key for key in value if key not in wanted]
        if missing:
            self._wrong(where, f"missing {_quoted(missing)}" + (f"; its keys are {_quoted(value)}" if value else ""))
        elif unknown:
            self._wrong(where, f"unknown key {_quoted(unknown)}, expected {_quoted(wanted)}")
        return not missing and not unknown

    def _wrong(self, where: str, text: str) -> None:
        self.problems.append(Problem(f"{where}: {text}", is_box=False))


def _four_numbers(value: object) -> Box | None:
    """`value` as floats; whole numbers too large for one become infinite. None where it is not four numbers."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if any(type(number) not in (int, float) for number in value):  # a bool is an int to isinstance
        return None
    return tuple(map(_as_float, value))


def _as_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _quoted(keys) -> str:
    return ", ".join(f'"{key}"' for key in keys)


def _shown(value: object) -> str:
    """The value as JSON, cut to what fits in a message."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 80 else f"{text[:77]}..."
