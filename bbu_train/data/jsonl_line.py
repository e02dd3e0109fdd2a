"""One line of a JSON Lines file of annotated pictures, in the format of conf/data/jsonl.yaml."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from bbu_train.data.annotations import NO_ROOT, LabelledObject, PictureChecker, Reading, clean_description, has_text
from bbu_train.data.boxes import Box
from bbu_train.data.findings import Action, Finding
from bbu_train.data.same_bytes import first_with_same_bytes
from bbu_train.errors import listed
from bbu_train.runtime.wording import cut
from bbu_train.types.samples import Object, Picture, Sample

PICTURE_KEYS = ("images", "objects")
SCORE = "score"
"""The key of a predicted object that is not used, but counted."""


def _stem(key: str) -> str:
    return key.strip().casefold().removesuffix("s")


KEY_OF_STEM = {_stem(key): key for key in (*PICTURE_KEYS, "student", "teachers")}
"""The keys of a line by their stems. Another key with one of these stems is a typing error."""


class LineReader:
    """Reads one line and collects its findings.

    `where` names the line, such as "train.jsonl:12". Relative picture paths begin in `folder`; with NO_ROOT they are
    refused.
    """

    def __init__(self, where: str, folder: Path, checker: PictureChecker) -> None:
        self.where = where
        self.folder = folder
        self.checker = checker
        self.findings: list[Finding] = []
        self.num_scores = 0

    def read(self, text: bytes) -> Reading:
        value = self._parse(text)
        student, teachers, unused = None, None, {}
        if value is not None and "student" not in value and "teachers" not in value:
            student = self._read_picture(self.where, value, allow_further=True)
            unused = {key: 1 for key in value if key not in PICTURE_KEYS}
            for key in unused if student is not None else ():
                if (known := KEY_OF_STEM.get(_stem(key))) is not None:
                    self._report(
                        self.where, "unknown keys", f"unknown key {_quote([key])}, which is nearly {_quote([known])}"
                    )
        elif value is not None:
            student, teachers = self._read_student_and_teachers(value)
        if self.num_scores:
            unused |= {f"objects/{SCORE}": self.num_scores}
        return Reading(Sample(self.where, student, teachers) if student else None, self.findings, unused)

    def _parse(self, text: bytes) -> dict[str, Any] | None:
        """Return the JSON object of a line, or None with a problem."""
        try:
            value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
        except UnicodeDecodeError as error:
            return self._report(self.where, "not UTF-8", f"not UTF-8 at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            return self._report(self.where, "malformed JSON", f"malformed JSON at column {error.colno}: {error.msg}")
        except _DuplicateKeyError as error:
            return self._report(self.where, "repeated keys", str(error))
        except (ValueError, RecursionError) as error:  # thousands of digits in a number, thousands of levels
            return self._report(self.where, "malformed JSON", f"malformed JSON: {error}")
        if not isinstance(value, dict):
            return self._report(self.where, "not an object {...}", f"expected an object {{...}}, found {_show(value)}")
        return value

    def _read_student_and_teachers(self, value: dict[str, Any]) -> tuple[Picture | None, tuple[Picture, ...]]:
        if not self._has_keys(self.where, value, ("teachers", "student"), allow_further=False):
            return None, ()
        student = self._read_picture(f"{self.where} student", value["student"], allow_further=False)
        if not isinstance(value["teachers"], list):
            self._report(self.where, "not a list", f'"teachers" must be a list, found {_show(value["teachers"])}')
            return student, ()
        pictures: dict[str, Picture] = {"the student's own picture": student} if student else {}
        for number, entry in enumerate(value["teachers"], 1):
            where = f"{self.where} teacher {number}"
            teacher = self._read_picture(where, entry, allow_further=False)
            if teacher is None:
                continue
            same = first_with_same_bytes(teacher, pictures.values())
            if same is None:
                pictures[f"the picture of teacher {number}"] = teacher
            else:
                name = next(name for name, picture in pictures.items() if picture is same)
                harm = ", which gives the answer away" if same is student else ""
                text = f"has {name}{harm}: the student and all teachers must have different pictures"
                self._report(where, "the same picture twice", text)
        return student, tuple(picture for picture in pictures.values() if picture is not student)

    def _read_picture(self, where: str, entry: object, allow_further: bool) -> Picture | None:
        if not self._has_keys(where, entry, PICTURE_KEYS, allow_further):
            return None
        images, objects = entry["images"], entry["objects"]
        if not (isinstance(images, list) and len(images) == 1 and isinstance(images[0], str) and images[0].strip()):
            self._report(where, "not a list of one path", f'"images" must be a list of one path, found {_show(images)}')
            images = None
        elif self.folder == NO_ROOT and not Path(images[0]).is_absolute():
            text = f"the path {_show(images[0])} is relative: give the folder where it begins, data.root=/path"
            self._report(where, "relative paths without data.root", text)
            images = None
        if not isinstance(objects, list):
            text = f'"objects" must be a list, empty if there are none, found {_show(objects)}'
            self._report(where, "not a list", text)
            objects = []
        candidates = [self._read_object(where, f"object {number}", value) for number, value in enumerate(objects, 1)]
        if images is None:
            return None
        readable = [candidate for candidate in candidates if candidate]
        return self.checker.check(where, self.folder / images[0], readable, self.findings)

    def _read_object(self, where: str, label: str, value: object) -> LabelledObject | None:
        if isinstance(value, dict) and SCORE in value:
            self.num_scores += 1
            value = {key: each for key, each in value.items() if key != SCORE}
        if not self._has_keys(f"{where} {label}", value, ("bbox_2d", "desc"), allow_further=False):
            return None
        description, is_text = value["desc"], isinstance(value["desc"], str)
        if not is_text or not has_text(clean_description(description)):
            text = f'"desc" must be text that is not blank, found {_show(description)}'
            self._report(f"{where} {label}", "no description", text)
        elif not _is_unicode(description):
            text = f'"desc" holds half a surrogate pair: {_show(description)}'
            self._report(f"{where} {label}", "half a surrogate pair", text)
        box = _four_numbers(value["bbox_2d"])
        if box is None:
            problem = f"box that is not four numbers {_show(value['bbox_2d'])}"
            self.findings.append(self.checker.bad_box(f"{where} {label}: {problem}", "not four numbers"))
            return None
        return LabelledObject(label, Object(box, clean_description(description) if is_text else ""))

    def _has_keys(
        self, where: str, value: object, expected: tuple[str, ...], allow_further: bool
    ) -> TypeGuard[dict[str, Any]]:
        """Whether `value` is an object with the expected keys, and no others unless `allow_further`."""
        if not isinstance(value, dict):
            text = f"expected an object {{...}} with {_quote(expected)}, found {_show(value)}"
            self._report(where, "not an object {...}", text)
            return False
        missing = [key for key in expected if key not in value]
        unknown = [] if allow_further else [key for key in value if key not in expected]
        if missing:
            has = f"; its keys are {_quote(value)}" if value else ""
            self._report(where, "missing keys", f"missing {_quote(missing)}, expected {_quote(expected)}{has}")
        elif unknown:
            self._report(where, "unknown keys", f"unknown key {_quote(unknown)}, expected {_quote(expected)}")
        return not missing and not unknown

    def _report(self, where: str, kind: str, text: str) -> None:
        self.findings.append(Finding(Action.ERROR, f"{where}: {text}", kind))


class _DuplicateKeyError(ValueError):
    """A JSON object has the same key twice. Python's parser would keep the last value only."""


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = [key for key, number in Counter(key for key, _ in pairs).items() if number > 1]
        raise _DuplicateKeyError(f"{_quote(twice)} more than once in one object {{...}}: keep one of them")
    return value


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
    return listed(f'"{key}"' for key in keys)


def _show(value: object) -> str:
    """Return the value as JSON, cut to fit into a message."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    return cut(text, 80)
