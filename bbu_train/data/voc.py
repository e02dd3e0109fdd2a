"""Reading a Pascal VOC folder: JPEGImages, Annotations and ImageSets/Main (Everingham et al. 2010).

Coordinates are not converted: they count as absolute pixels from 0 at the left and upper edges of the upright picture.
The original VOC counts from 1, but most tools that write the format do not. An object's name is its description.
"""

from itertools import chain
from pathlib import Path

from bbu_train.data.annotations import PictureChecker, Reading, check_choice, check_root, read_all, split_problem
from bbu_train.data.findings import Action, Finding, raise_or_log
from bbu_train.data.splits import Splits, splits_of
from bbu_train.data.teachers import TeacherDraw
from bbu_train.data.voc_annotation import AnnotationReader
from bbu_train.data.voc_files import NamedFiles, PictureFinder, list_path, name_of, read_split
from bbu_train.runtime.file_names import printable

FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")
DIFFICULT = ("train", "drop")
PARTS = ("error", "drop", "train")


def load(
    root: str | Path | None,
    train: str | int,
    validation: str | int,
    bad_boxes: str,
    difficult: str,
    parts: str,
    teachers: TeacherDraw,
) -> Splits:
    """Read the annotations that ImageSets/Main/<train>.txt and <validation>.txt list, each file once.

    Sample ids are "Annotations/<name>.xml". The picture has that name and an ending of `images.files.ENDINGS`, in any
    case; if there is none, it is the annotation's <filename>. `bad_boxes` works as in `jsonl.load`. `difficult` objects
    are trained or left out; `parts` of objects too, or they are an error. Raises InputError with all problems of both
    splits.
    """
    checker = PictureChecker(bad_boxes)
    train, validation = str(train), str(validation)  # 2012 is a name, too
    check_choice("difficult", difficult, DIFFICULT)
    check_choice("parts", parts, PARTS)
    folder = check_root(root, ", ".join(FOLDERS), "voc")
    missing = [name for name in FOLDERS if not (folder / name).is_dir()]
    raise_or_log(
        folder,
        [Finding(Action.ERROR, f"data.root={root}: it has no folder {name}", "folders") for name in missing],
        "voc",
    )
    annotations = NamedFiles(folder / "Annotations", (".xml",))
    pictures = PictureFinder(folder / "JPEGImages", annotations)

    findings: list[Finding] = []
    names = {
        "train": _read_split(folder, "train", train, annotations, findings),
        "validation": _read_split(folder, "validation", validation, annotations, findings),
    }
    listed_in = {name: key for key, split in names.items() for name in split}

    def read(name: str) -> Reading:
        where, files = _sample_id(name), annotations.find(name)
        if not files:
            return _missing_annotation(where, name, listed_in[name])
        return AnnotationReader(where, checker, difficult, parts).read(files[0], name, pictures)

    distinct = dict.fromkeys(chain.from_iterable(names.values()))
    readings = dict(zip(distinct, read_all(distinct, read), strict=True))
    raise_or_log(folder, [*findings, *chain.from_iterable(reading.findings for reading in readings.values())], "voc")
    by_split = {key: [readings[name] for name in split] for key, split in names.items()}
    return splits_of(by_split, teachers)


def _sample_id(name: str) -> str:
    return f"Annotations/{printable(name)}.xml"


def _missing_annotation(where: str, name: str, key: str) -> Reading:
    text = f"{where}: No such file, but the list of data.{key} names it"
    if where != f"Annotations/{name}.xml":
        text += "; its name in the list holds bytes that are not UTF-8, or a control character"
    return Reading(None, [Finding(Action.ERROR, text, "missing annotations")], {})


def _read_split(folder: Path, key: str, split: str, annotations: NamedFiles, findings: list[Finding]) -> list[str]:
    """Return the names that a split lists, one per line. Adds to `findings`."""
    path = list_path(folder, split)
    where = f"ImageSets/Main/{path.name} (data.{key}={split})"
    if (problem := split_problem(folder, key, split, path)) is not None:
        findings.append(Finding(Action.ERROR, problem, "files of splits"))
        return []
    try:
        lines = read_split(path.read_bytes())
    except UnicodeDecodeError as error:
        findings.append(
            Finding(Action.ERROR, f"{where}: not {error.encoding} at byte {error.start + 1}", "files of splits")
        )
        return []
    if not lines:
        findings.append(Finding(Action.ERROR, f"{where}: empty file", "files of splits"))
    return [name_of(line, annotations) for line in lines]
