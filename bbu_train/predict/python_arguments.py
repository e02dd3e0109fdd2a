"""The arguments of `bbu_train.load` and of its models, checked: what was given, and what is expected."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bbu_train.errors import InputError, all_problems
from bbu_train.ops.numbers import is_count, is_share
from bbu_train.predict.pictures import find_pictures
from bbu_train.runtime.file_names import printable
from bbu_train.runtime.wording import cut

Source = str | Path | Image.Image
"""A picture: its file, or the image itself. A folder or a pattern stands for its pictures."""

ARRAY_HINT = "PIL.Image.fromarray makes an image of an array of uint8"
BYTES_HINT = "PIL.Image.open(io.BytesIO(...)) makes an image of the bytes of a file"
MAX_SHOWN = 60  # characters of a value in a message


def refuse(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise all_problems("The arguments", problems, "help(bbu_train.load) and help() of the model explain them.")


def plain(value: Any) -> Any:
    """Return a number of numpy as the number of Python that it is, and anything else unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def path_problems(key: str, value: object) -> list[str]:
    """Return a problem unless `value` is the path of a folder, as text or as a path."""
    if isinstance(value, str | os.PathLike) and str(value).strip():
        return []
    return [_problem(key, value, "the path of a folder, as str or Path")]


def choice_problems(key: str, value: object, choices: Iterable[str]) -> list[str]:
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return []
    return [_problem(key, value, f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}")]


def checkpoint_problems(value: object) -> list[str]:
    if is_count(value) or (isinstance(value, str) and value in ("best", "last")):
        return []
    return [_problem("checkpoint", value, "'best', 'last' or a step, which is a whole number")]


def count_problems(values: Mapping[str, object], minima: Mapping[str, int]) -> list[str]:
    """Return a problem for each value that is no whole number of at least the minimum of its key."""
    return [
        _problem(key, values[key], f"a whole number of at least {minimum}")
        for key, minimum in minima.items()
        if not is_count(values[key], minimum)
    ]


def threshold_problems(value: object) -> list[str]:
    return [] if value is None or is_share(value) else [_problem("threshold", value, "a number from 0 to 1, or None")]


def device_of(device: object) -> torch.device | None:
    """Return `device` as torch knows it. Raises InputError if this machine has none of that name."""
    if device is None:
        return None
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(["cuda"] if num_gpus else []), *(f"cuda:{index}" for index in range(num_gpus))]
    if not isinstance(device, str | torch.device) or str(device) not in devices:
        raise InputError(_problem("device", device, f"one that this machine has, {', '.join(map(repr, devices))}"))
    return torch.device(device)


def find_sources(images: Any) -> list[tuple[str, Path | Image.Image]]:
    """Return each file and each image in memory that `images` names, with its name for messages, in their order.

    Raises InputError that lists what names no picture.
    """
    single = isinstance(images, str | os.PathLike | Image.Image | bytes | bytearray | io.IOBase | Mapping)
    single = single or hasattr(images, "__array__") or not isinstance(images, Iterable)
    sources: list[tuple[str, Path | Image.Image]] = []
    problems = []
    given = [images] if single else list(images)
    for number, each in enumerate(given, start=1):
        name = "the picture" if single else f"picture {number} of the list"
        if isinstance(each, Image.Image):
            sources.append((name, each))
        elif isinstance(each, str | os.PathLike):
            try:
                sources += [(printable(str(path)), path) for path in find_pictures(os.fsdecode(each))]
            except InputError as error:
                problems.append(str(error))
        else:
            problems.append(_wrong_type("images" if single else name, each))
    if not given:
        problems = ["images is empty: expected at least one picture."]
    refuse(problems)
    return sources


def _wrong_type(name: str, value: object) -> str:
    hint = ""
    if hasattr(value, "__array__"):
        hint = f" {ARRAY_HINT}."
    elif isinstance(value, bytes | bytearray | io.IOBase):
        hint = f" {BYTES_HINT}."
    return f"{name} is of type {type(value).__name__}: expected a path or a PIL image.{hint}"


def _problem(key: str, value: object, expected: str) -> str:
    return f"{key}={cut(repr(value), MAX_SHOWN)} is of type {type(value).__name__}: expected {expected}."
