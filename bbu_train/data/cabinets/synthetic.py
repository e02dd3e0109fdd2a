"""A data set of synthetic images, drawn once into a folder and read back as JSONL data."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from bbu_train.data import jsonl
from bbu_train.data.cabinets import cabinet, workbench
from bbu_train.data.cabinets.words import LANGUAGES
from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import all_problems
from bbu_train.images import fonts
from bbu_train.runtime.progress_bar import ProgressBar
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object

SCENES = {"cabinet": cabinet.draw, "workbench": workbench.draw}
"""What an image shows, and the function that draws it."""
MIN_PARALLEL = 400  # pictures: fewer are drawn before other processes have started
FORMAT = 1  # increase it when the drawing changes, so that older folders are not reused

Line = dict[str, Any]
"""A sample in the form that `jsonl` reads."""
Draw = Callable[..., tuple[Image.Image, tuple[Object, ...]]]
"""A function from a key and what an image shall hold to the image and its objects."""


def load(
    root: str | Path,
    *,
    scene: str,
    num_train: int,
    num_validation: int,
    width: int,
    height: int,
    min_objects: int,
    max_objects: int,
    language: str,
    seed: int,
    teachers: TeacherDraw,
) -> Splits:
    """Return the synthetic data set of these values, and draw it first if `root` does not hold it yet.

    Each set of values has its own folder under `root`, which appears complete or not at all. If several processes load
    it at once, one draws and the others wait. `scene` is one of SCENES. Pictures have 85 to 100% of `width` and of
    `height`. Raises InputError for values out of range.
    """
    content = {
        "width": width,
        "height": height,
        "min_objects": min_objects,
        "max_objects": max_objects,
        "language": language,
    }
    values = {"scene": scene, "num_train": num_train, "num_validation": num_validation, "seed": seed, **content}
    _check(values)
    folder = Path(root) / _name(values)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                draw_one = partial(_draw_one, SCENES[scene], content, seed)
                _write(folder, {"train": num_train, "validation": num_validation}, draw_one)
    return jsonl.load(
        root=folder, train="train.jsonl", validation="validation.jsonl", bad_boxes="error", teachers=teachers
    )


def _check(values: dict[str, Any]) -> None:
    minimums = {"num_train": 1, "num_validation": 1, "width": 56, "height": 56, "min_objects": 0, "max_objects": 1}
    problems = [
        f"data.{key}={values[key]}: expected a whole number of at least {minimum}"
        for key, minimum in minimums.items()
        if type(values[key]) is not int or values[key] < minimum
    ]
    if not problems and values["max_objects"] < values["min_objects"]:
        problems.append(f"data.max_objects={values['max_objects']}: less than data.min_objects={values['min_objects']}")
    problems += [
        f"data.{key}={values[key]}: expected one of {', '.join(words)}"
        for key, words in (("scene", SCENES), ("language", LANGUAGES))
        if values[key] not in words
    ]
    if problems:
        raise all_problems("The synthetic data set", problems, "Set these keys in conf/data or as overrides.")


def _name(values: dict[str, Any]) -> str:
    """Return the folder's name: a hash of everything that decides its content.

    Chinese labels are drawn in an installed font, so the name of its file is included: with another font, the data
    set is drawn again.
    """
    font_file = fonts.cjk_font_file() if values["language"] == "chinese" else None
    identity = json.dumps({**values, "format": FORMAT, "font": font_file and font_file.name}, sort_keys=True)
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _write(folder: Path, num_pictures: dict[str, int], draw_one: Callable[[Path, str, int], Line]) -> None:
    """Draw into a folder beside `folder` and rename it, so that an interrupted process leaves no partial data set."""
    unfinished = folder.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "pictures").mkdir(parents=True)
    with ProgressBar(sum(num_pictures.values()), "drawing pictures") as progress:
        for split, count in num_pictures.items():
            with (unfinished / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for line in _in_order(partial(draw_one, unfinished, split), count):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    progress.update()
    unfinished.rename(folder)


def _in_order(draw_one: Callable[[int], Line], count: int) -> Iterator[Line]:
    """Yield the lines of all pictures below `count`. If they are many, all cores of this process share the drawing."""
    if count < MIN_PARALLEL:
        yield from map(draw_one, range(count))
        return
    # Forked, because a new interpreter would import torch first, and drawing needs no thread of this process. The
    # children ignore Ctrl-C, because this process handles it.
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), get_context("fork"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        yield from pool.map(draw_one, range(count), chunksize=8)


def _draw_one(draw: Draw, content: dict[str, Any], seed: int, folder: Path, split: str, index: int) -> Line:
    """Draw one picture, save it under `folder` and return its line of JSONL."""
    key = (seed, split, index)
    factors = generator("size", *key).uniform(0.85, 1, 2)
    width, height = (round(content[side] * factor) for side, factor in zip(("width", "height"), factors, strict=True))
    picture, objects = draw(key, **{**content, "width": width, "height": height})
    name = f"pictures/{split}_{index:06d}.jpg"
    picture.save(folder / name, quality=90)
    return {
        "images": [name],
        "objects": [{"bbox_2d": list(item.box_xyxy), "desc": item.description} for item in objects],
    }
