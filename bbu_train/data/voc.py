"""Reading a Pascal VOC folder: JPEGImages, Annotations and ImageSets/Main (Everingham et al. 2010).

Coordinates are not converted: they count as absolute pixels from 0 at the left and upper edges of the upright picture.
The original VOC counts from 1, but most tools that write the format do not. An object's name is its description.
"""

from pathlib import Path

from bbu_train.data.annotations import PictureChecker, check_choice, check_root, read_all
from bbu_train.data.findings import Action, Finding, report
from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.data.voc_annotation import AnnotationReader
from bbu_train.data.voc_files import NamedFiles, PictureFinder, name_of, read_split
from bbu_train.runtime.file_names import printable
from bbu_train.types.samples import Sample

FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")
DIFFICULT = ("train", "drop")
PARTS = ("error", "drop", "train")


def load(
    root: str | Path | None,
    train: str,
    validation: str,
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
    check_choice("difficult", difficult, DIFFICULT)
    check_choice("parts", parts, PARTS)
    folder = check_root(root, contents=", ".join(FOLDERS))
    missing = [name for name in FOLDERS if not (folder / name).is_dir()]
    report(folder, [Finding(Action.ERROR, f"data.root={root}: it has no folder {name}") for name in missing])
    annotations = NamedFiles(folder / "Annotations", (".xml",))
    pictures = PictureFinder(folder / "JPEGImages", annotations)

    def read_annotation(name: str) -> tuple[Sample | None, list[Finding]]:
        where = _sample_id(name)
        files = annotations.find(name)
        if not files:
            hint = "" if where == f"Annotations/{name}.xml" else ", and its name in the list is not UTF-8"
            return None, [Finding(Action.ERROR, f"{where}: No such file{hint}")]
        reader = AnnotationReader(where, checker, difficult, parts)
        picture = reader.read(files[0], name, pictures)
        return Sample(where, picture, None) if picture else None, reader.findings

    findings: list[Finding] = []
    train_names = _read_split(folder, "train", train, annotations, findings)
    validation_names = _read_split(folder, "validation", validation, annotations, findings)
    samples, annotation_findings = read_all(dict.fromkeys(train_names + validation_names), read_annotation)
    num_changed_objects = report(folder, findings + annotation_findings)
    by_id = {sample.id: sample for sample in samples}
    train_samples, validation_samples = (
        tuple(by_id[_sample_id(name)] for name in split) for split in (train_names, validation_names)
    )
    return Splits(train_samples, validation_samples, teachers, num_changed_objects)


def _sample_id(name: str) -> str:
    return f"Annotations/{printable(name)}.xml"


def _read_split(folder: Path, key: str, split: str, annotations: NamedFiles, findings: list[Finding]) -> list[str]:
    """Return the names that a split lists, one per line. Adds to `findings`."""
    path = folder / "ImageSets/Main" / f"{split.removesuffix('.txt')}.txt"
    where = f"ImageSets/Main/{path.name} (data.{key}={split})"
    if not path.is_file():
        existing = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))) or "none"
        findings.append(Finding(Action.ERROR, f"{where}: no such file; there are: {existing}"))
        return []
    try:
        lines = read_split(path.read_bytes())
    except UnicodeDecodeError as error:
        findings.append(Finding(Action.ERROR, f"{where}: not {error.encoding} at byte {error.start + 1}"))
        return []
    if not lines:
        findings.append(Finding(Action.ERROR, f"{where}: empty file"))
    return [name_of(line, annotations) for line in lines]
