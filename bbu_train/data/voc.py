"""Reading a Pascal VOC folder: JPEGImages, Annotations and ImageSets/Main (Everingham et al. 2010).

Coordinates are not converted: they count as absolute pixels from 0 at the left and upper edges of the upright picture.
The original VOC counts from 1, but most tools that write the format do not. An object's name is its description.
"""

from functools import partial
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

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

FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")
SUFFIXES = (".jpg", ".jpeg", ".png")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load(root: str | Path | None, train: str, validation: str, bad_boxes: str, teachers: TeacherDraw) -> Splits:
    """Read the annotations that ImageSets/Main/<train>.txt and <validation>.txt list, each file once.

    Sample ids are "Annotations/<name>.xml". The picture is the annotation's <filename> if that exists, else <name>
    with .jpg, .jpeg or .png. `bad_boxes` works as in `jsonl.load`. Raises InputError with all problems of both splits.
    """
    folder = check_root(root, bad_boxes, contents=", ".join(FOLDERS))
    problems = [
        Problem(f"data.root={root}: it has no folder {name}", is_box=False)
        for name in FOLDERS
        if not (folder / name).is_dir()
    ]
    if problems:
        drop_or_raise(folder, problems, bad_boxes)
    train_names = _read_split(folder, "train", train, problems)
    validation_names = _read_split(folder, "validation", validation, problems)
    names = list(dict.fromkeys(train_names + validation_names))
    samples, annotation_problems = read_all(names, partial(_read_annotation, folder, PictureSizes()))
    num_dropped_boxes = drop_or_raise(folder, problems + annotation_problems, bad_boxes)
    by_id = {sample.id: sample for sample in samples}
    train_samples, validation_samples = (
        tuple(by_id[_sample_id(name)] for name in split) for split in (train_names, validation_names)
    )
    return Splits(train_samples, validation_samples, teachers, num_dropped_boxes)


def _sample_id(name: str) -> str:
    return f"Annotations/{name}.xml"


def _read_split(folder: Path, key: str, split: str, problems: list[Problem]) -> list[str]:
    """Return the names that a split lists, one per line. Adds to `problems`."""
    path = folder / "ImageSets/Main" / f"{split}.txt"
    where = f"ImageSets/Main/{split}.txt (data.{key}={split})"
    if not path.is_file():
        existing = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))) or "none"
        problems.append(Problem(f"{where}: no such file; there are: {existing}", is_box=False))
        return []
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        problems.append(Problem(f"{where}: not UTF-8 at byte {error.start + 1}", is_box=False))
        return []
    if not names:
        problems.append(Problem(f"{where}: empty file", is_box=False))
    return names


def _read_annotation(folder: Path, sizes: PictureSizes, name: str) -> tuple[Sample | None, list[Problem]]:
    where = _sample_id(name)
    problems: list[Problem] = []
    root = _parse(folder, where, problems)
    if root is None:
        return None, problems
    path = _picture_path(folder, name, root)
    objects = [
        _read_object(where, number, element, problems) for number, element in enumerate(root.findall("object"), 1)
    ]
    readable = [candidate for candidate in objects if candidate]
    picture = check_picture(where, path, readable, sizes, problems)
    if picture is None:
        return None, problems
    _check_size(where, root, picture, problems)
    return Sample(where, picture, None), problems


def _parse(folder: Path, where: str, problems: list[Problem]) -> Element | None:
    """Return the root element of an annotation, or None with a problem."""
    try:
        root = ElementTree.parse(folder / where).getroot()
    except ElementTree.ParseError as error:
        problems.append(Problem(f"{where}:{error.position[0]}: malformed XML: {error}", is_box=False))
        return None
    except (OSError, ValueError, LookupError) as error:  # a missing file; an encoding that the parser does not know
        problems.append(Problem(f"{where}: {getattr(error, 'strerror', None) or error}", is_box=False))
        return None
    if root.tag != "annotation":
        problems.append(Problem(f"{where}: expected <annotation>, found <{root.tag}>", is_box=False))
        return None
    return root


def _picture_path(folder: Path, name: str, root: Element) -> Path:
    """Return the first candidate that exists. If none does, return the first one, for the error message to name it."""
    filename = (root.findtext("filename") or "").strip()
    candidates = [folder / "JPEGImages" / file for file in [filename, *(name + suffix for suffix in SUFFIXES)] if file]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _check_size(where: str, root: Element, picture: Picture, problems: list[Problem]) -> None:
    """Add a problem if <size> is not the picture's upright size: its boxes then belong to other pixels."""
    if root.find("size") is None:
        return
    annotated_size = tuple(_number(root.find("size"), side) for side in ("width", "height"))
    if annotated_size != (picture.width, picture.height):
        text = " x ".join((root.findtext(f"size/{side}") or "?").strip() for side in ("width", "height"))
        upright = f"{picture.path.name}, upright {picture.width} x {picture.height}"
        problems.append(Problem(f"{where}: its size {text} differs from that of {upright}", is_box=False))


def _read_object(where: str, number: int, element: Element, problems: list[Problem]) -> LabelledObject | None:
    name = (element.findtext("name") or "").strip()
    label = f"object {number} ({name})" if name else f"object {number}"
    if not name:
        problems.append(Problem(f"{where} {label}: no name", is_box=False))
    box = _read_box(element.find("bndbox"))
    if box is None:
        problem = f"box that is not four numbers {_show_box(element.find('bndbox'))}"
        problems.append(Problem(f"{where} {label}: {problem}", is_box=True))
        return None
    return LabelledObject(label, Object(box, name))


def _read_box(element: Element | None) -> Box | None:
    x1, y1, x2, y2 = (_number(element, corner) for corner in CORNERS)
    return None if x1 is None or y1 is None or x2 is None or y2 is None else (x1, y1, x2, y2)


def _number(element: Element | None, key: str) -> float | None:
    text = element.findtext(key) if element is not None else None
    try:
        return float(text or "")
    except ValueError:
        return None


def _show_box(element: Element | None) -> str:
    if element is None:
        return "(there is no bndbox)"
    return "[" + ", ".join((element.findtext(corner) or "?").strip() for corner in CORNERS) + "]"
