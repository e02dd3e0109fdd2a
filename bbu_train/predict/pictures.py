"""From the pictures that a command names to samples, with true objects and teachers where the data has them."""

import glob
from collections.abc import Sequence
from pathlib import Path

from bbu_train.conversation.patches import resized_size
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError, all_problems
from bbu_train.images.files import UnreadablePicture, read_header
from bbu_train.types.samples import Picture, PictureFormat, Sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def find_pictures(images: str) -> list[Path]:
    """Return the file, all pictures in the folder and its subfolders, or all files that match the pattern, sorted.

    Raises InputError if there are none.
    """
    path = Path(images).expanduser()
    if path.is_dir():
        paths = [each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES]
        hint = f"no file in that folder ends in {', '.join(SUFFIXES)}"
    elif path.exists():
        return [path]
    else:
        paths = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (Path.glob takes no absolute one)
        hint = "there is no such file or folder, and no file matches it as a pattern"
    files = sorted(each for each in paths if each.is_file())
    if not files:
        raise InputError(f"images={images}: {hint}.")
    return files


def build_samples(
    paths: Sequence[Path], picture_format: PictureFormat, data: Splits | None, num_teachers: int
) -> list[Sample]:
    """Return each picture as the student of a sample, with its true objects if `data` has the picture.

    Teachers are drawn from the training pictures as in validation, so a picture of `data` gets the same ones there.
    `num_teachers` above 0 needs `data`. Raises InputError that lists every picture that cannot be read or has a shape
    that the model does not accept.
    """
    assert data is not None or num_teachers == 0
    known = {} if data is None else {each.student.path.resolve(): each for each in (*data.train, *data.validation)}
    samples, problems = [], []
    for path in paths:
        try:
            sample = known.get(path.resolve()) or Sample(str(path), Picture(path, *read_header(path), None), None)
            resized_size(sample.student, picture_format)
        except (UnreadablePicture, InputError) as error:
            problems.append(str(error))
            continue
        teachers = data.with_validation_teachers(sample, num_teachers).teachers if data else ()
        samples.append(Sample(str(path), sample.student, teachers))
    if problems:
        fix = "Repair these files, or name a folder or pattern without them."
        raise all_problems("Pictures to predict", problems, fix)
    return samples
