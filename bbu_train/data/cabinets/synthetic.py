"""Made photographs of equipment cabinets, drawn once into a folder and read back like anybody's JSONL data."""

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

from filelock import FileLock
from tqdm import tqdm

from bbu_train.data import jsonl
from bbu_train.data.cabinets.cabinet import draw
from bbu_train.data.cabinets.words import LANGUAGES
from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import all_problems
from bbu_train.images import fonts
from bbu_train.runtime.seeds import generator

MANY = 400  # pictures, from which on the cores share the drawing: fewer are drawn before processes have started
FORMAT = 1  # raise it when the drawing changes, so that no folder drawn before is taken for the new data


def load(
    root: str | Path,
    *,
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
    """The made data set of these values, drawn if `root` does not hold it yet.

    Each set of values has its own folder under `root`, which appears whole or not at all; of several processes that
    want it at once, one draws and the others wait. Pictures have 85 to 100% of `width` and of `height`.
    Raises InputError for values that make no pictures.
    """
    scene = {
        "width": width,
        "height": height,
        "min_objects": min_objects,
        "max_objects": max_objects,
        "language": language,
    }
    values = {"num_train": num_train, "num_validation": num_validation, "seed": seed, **scene}
    _check(values)
    folder = Path(root) / _name(values)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _write(folder, {"train": num_train, "validation": num_validation}, seed, scene)
    return jsonl.load(
        root=folder, train="train.jsonl", validation="validation.jsonl", bad_boxes="error", teachers=teachers
    )


def _check(values: dict) -> None:
    least = {"num_train": 1, "num_validation": 1, "width": 56, "height": 56, "min_objects": 0, "max_objects": 1}
    problems = [
        f"data.{key}={values[key]}: expected a whole number of at least {limit}"
        for key, limit in least.items()
        if type(values[key]) is not int or values[key] < limit
    ]
    if not problems and values["max_objects"] < values["min_objects"]:
        problems.append(f"data.max_objects={values['max_objects']}: less than data.min_objects={values['min_objects']}")
    if values["language"] not in LANGUAGES:
        problems.append(f"data.language={values['language']}: expected one of {', '.join(LANGUAGES)}")
    if problems:
        raise all_problems("The made data set", problems, "Set these keys in conf/data or as overrides.")


def _name(values: dict) -> str:
    """The folder's name: a hash of all that decides its content.

    Chinese labels are drawn in whatever font is installed, so its file is a part: a font installed later redraws.
    """
    font_file = fonts.cjk_font_file() if values["language"] == "chinese" else None
    identity = json.dumps({**values, "format": FORMAT, "font": font_file and font_file.name}, sort_keys=True)
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _write(folder: Path, num_pictures: dict[str, int], seed: int, scene: dict) -> None:
    """Draw into a folder beside `folder` and rename that into place, so that a kill leaves no half data set."""
    unfinished = folder.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "pictures").mkdir(parents=True)
    with tqdm(total=sum(num_pictures.values()), desc="drawing cabinets", unit="picture", delay=2) as progress:
        for split, count in num_pictures.items():
            with (unfinished / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for line in _in_order(partial(_draw_one, unfinished, split, seed, scene), count):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    progress.update()
    unfinished.rename(folder)


def _in_order(draw_one: Callable[[int], dict], count: int) -> Iterator[dict]:
    """Of each number below `count`; where they are many, each core of this process draws some."""
    if count < MANY:
        yield from map(draw_one, range(count))
        return
    # Forked, for a new interpreter would import torch first; what is drawn needs no thread of this process. A Ctrl-C
    # goes to all of them, and this process answers it.
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), get_context("fork"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        yield from pool.map(draw_one, range(count), chunksize=8)


def _draw_one(folder: Path, split: str, seed: int, scene: dict, index: int) -> dict:
    """Saves one picture under `folder` and gives its line of JSONL."""
    key = (seed, split, index)
    smaller = generator("size", *key).uniform(0.85, 1, 2)
    width, height = (round(scene[side] * factor) for side, factor in zip(("width", "height"), smaller, strict=True))
    picture, objects = draw(key, **{**scene, "width": width, "height": height})
    name = f"pictures/{split}_{index:06d}.jpg"
    picture.save(folder / name, quality=90)
    return {
        "images": [name],
        "objects": [{"bbox_2d": list(thing.box_xyxy), "desc": thing.description} for thing in objects],
    }
