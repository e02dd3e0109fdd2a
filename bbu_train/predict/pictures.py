"""Which pictures are to be looked at, and what is known of them."""

import glob
from collections.abc import Sequence
from pathlib import Path

from bbu_train.conversation.patches import resized_size
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError, all_problems
from bbu_train.images.files import UnreadablePicture, read_header
from bbu_train.types.samples import Picture, PictureFormat, Sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def find(images: str) -> list[Path]:
    """The file, the pictures anywhere in the folder, or the files that match the pattern, in order of their names."""
    path = Path(images).expanduser()
    if path.is_dir():
        found = [each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES]
        hint = f"no file in that folder ends in {', '.join(SUFFIXES)}"
    elif path.exists():
        return [path]
    else:
        found = list(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 (Path.glob takes no absolute one)
        hint = "there is no such file or folder, and no file matches it as a pattern"
    files = sorted(each for each in found if each.is_file())
    if not files:
        raise InputError(f"images={images}: {hint}.")
    return files


def settle(
    paths: Sequence[Path], picture_format: PictureFormat, data: Splits | None, num_teachers: int
) -> list[Sample]:
    """Each picture as a student, with its objects where `data` knows them, and with its teachers.

    Those are drawn from the training pictures as a validation sample's are: for one of `data`, they are the same.
    Raises InputError that lists every picture that cannot be read or has a shape that the model does not take.
    """
    known = {} if data is None else {each.student.path.resolve(): each for each in (*data.train, *data.validation)}
    samples, problems = [], []
    for path in paths:
        try:
            sample = known.get(path.resolve()) or Sample(str(path), Picture(path, *read_header(path), None), None)
            resized_size(sample.student, picture_format)
        except (UnreadablePicture, InputError) as error:
            problems.append(str(error))
            continue
        assert data is not None or num_teachers == 0
        teachers = data.with_validation_teachers(sample, num_teachers).teachers if data else ()
        samples.append(Sample(str(path), sample.student, teachers))
    if problems:
        raise all_problems("Pictures to look at", problems, "Mend these, or name a folder or a pattern without them.")
    return samples
