"""From the pictures that a command names to samples, with true objects and teachers where the data has them."""

import difflib
import glob
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from bbu_train.conversation.patches import resized_size
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError, all_problems, listed
from bbu_train.images.files import ENDINGS, SpellingOnDisk, UnreadablePicture, open_upright
from bbu_train.runtime.file_names import printable
from bbu_train.types.samples import Picture, PictureFormat, Sample


def find_pictures(images: str) -> list[Path]:
    """Return the file, the pictures in the folder and its subfolders, or those that match the pattern, sorted.

    A single file is taken whatever its name. From a folder or a pattern, files with one of `ENDINGS` in any case are
    taken, but no hidden ones and none in hidden folders. Raises InputError if there are none.
    """
    if not images.strip():
        raise InputError(f"images={images!r} is empty: expected a picture, a folder or a pattern.")
    path = SpellingOnDisk()(Path(images).expanduser())
    if path.is_file():
        return [path]
    if path.is_dir():
        paths = [each for each in path.rglob("*") if not _is_hidden(each.relative_to(path))]
    else:
        patterns = {str(path), *(normalize(form, str(path)) for form in ("NFC", "NFD"))}
        matches = {name for each in patterns for name in glob.glob(each, recursive=True)}  # noqa: PTH207 (Path.glob takes no absolute one)
        paths = [Path(name) for name in matches]
    if not paths and not path.is_dir():
        near = _what_is_near(path)
        raise InputError(
            f"images={images}: there is no such file or folder, and no file matches it as a pattern. {near}"
        )
    # Broken links stay in, and `build_samples` reports them.
    files = sorted(each for each in paths if each.suffix.lower() in ENDINGS and not each.is_dir())
    if not files:
        raise InputError(
            f"images={images}: no file there ends in {', '.join(ENDINGS)}, in upper or lower case. "
            f"It has {listed(sorted({each.name for each in paths})) or 'nothing'}."
        )
    return files


def _what_is_near(path: Path) -> str:
    """Say what the last folder holds that there is of a path or a pattern, names like the missing one first."""
    folder = next(each for each in path.absolute().parents if each.is_dir())
    name = path.absolute().relative_to(folder).parts[0]
    names = sorted(each.name for each in folder.iterdir() if not _is_hidden(each.relative_to(folder)))
    near = difflib.get_close_matches(name, names)
    return f"{folder} has {listed(near + [each for each in names if each not in near]) or 'nothing'}."


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def build_samples(
    paths: Sequence[Path],
    picture_format: PictureFormat,
    data: Splits | None,
    num_teachers: int,
    names: Sequence[str] | None = None,
) -> list[Sample]:
    """Return each picture as the student of a sample, with its true objects if `data` has the picture.

    Samples are called by `names`, or by their paths if there are none; teachers are drawn by this name.
    Teachers are drawn from the training pictures by data.teachers.validation_seed, also where the data fixes others.
    `num_teachers` above 0 needs `data`. Each picture is decoded, so that none stops the prediction halfway. Raises
    InputError that lists every picture that cannot be read or has a shape that the model does not accept.
    """
    assert data is not None or num_teachers == 0
    known = {} if data is None else {each.student.path.resolve(): each for each in (*data.train, *data.validation)}
    samples, problems = [], []
    for name, path in zip(names or [printable(str(path)) for path in paths], paths, strict=True):
        try:
            size = open_upright(path).size
            sample = known.get(path.resolve()) or Sample(name, Picture(path, *size, None), None)
            resized_size(sample.student, picture_format)
        except (UnreadablePicture, InputError) as error:
            problems.append(printable(str(error).replace(str(path), name)))
            continue
        teachers = data.with_validation_teachers(sample, num_teachers).teachers if data else ()
        samples.append(Sample(name, sample.student, teachers))
    if problems:
        fix = "Repair these pictures, or leave them out."
        raise all_problems("Pictures to predict", problems, fix)
    return samples
