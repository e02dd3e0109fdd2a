"""Which files of a Pascal VOC folder belong together: the lines of a split, annotations and pictures."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from bbu_train.data.encodings import codec_of
from bbu_train.images.files import ENDINGS, SpellingOnDisk
from bbu_train.types.files import Times

SECOND_COLUMN = re.compile(r"(.*\S)\s+(?:-1|0|1)")  # of a list for one class: whether a picture has the class

OTHER_FILENAME = "<filename> differs from the annotation's own name, whose picture takes precedence if there is one"
SEVERAL_PICTURES = "several pictures have the annotation's name, and the first in the order of endings is read"


class NamedFiles:
    """The files of a folder, found by their names without ending, in whatever Unicode form they are on disk.

    The ending is one of `endings`, in upper or lower case. Each folder is listed once.
    """

    def __init__(self, folder: Path, endings: tuple[str, ...]) -> None:
        self.folder = folder
        self.endings = endings
        self._spelling = SpellingOnDisk()
        self._listings: dict[str, tuple[Path, dict[str, list[str]]]] = {}

    @property
    def listed(self) -> Mapping[Path, Times]:
        """The folders that were listed so far, with their Times before that."""
        return self._spelling.listed

    def find(self, name: str) -> list[Path]:
        """Return the files of a name, which may begin with subfolders, in the order of `endings`.

        Files with exactly this name come before those in another Unicode form, and these before another case.
        """
        subfolder, _, base = name.rpartition("/")
        folder, listing = self._listing(subfolder)
        candidates = listing.get(_fold(base), [])
        for same in (str, _nfc, _fold):
            found = [file for file in candidates if same(_stem(file)) == same(base)]
            if found:
                return [folder / file for file in found]
        return []

    def _listing(self, subfolder: str) -> tuple[Path, dict[str, list[str]]]:
        """Return the path of a subfolder on disk, and its files by their folded names."""
        if subfolder not in self._listings:
            listing = defaultdict(list)
            folder = self._spelling(self.folder / subfolder)
            for name in self._spelling.names_in(folder):
                if _ending(name) in self.endings:
                    listing[_fold(_stem(name))].append(name)
            for files in listing.values():
                files.sort(key=lambda file: (self.endings.index(_ending(file)), file))
            self._listings[subfolder] = folder, dict(listing)
        return self._listings[subfolder]


def list_path(folder: Path, split: str) -> Path:
    """Return the list of a split, which is named with or without its ending."""
    return folder / "ImageSets/Main" / f"{split.removesuffix('.txt')}.txt"


def read_split(data: bytes) -> list[str]:
    """Return the lines of a list in ImageSets/Main, without blank ones.

    Bytes that are not UTF-8 become lone surrogates, as in file names. Raises UnicodeDecodeError for broken UTF-16.
    """
    text = data.decode(codec_of(data), errors="surrogateescape")
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def name_of(line: str, annotations: NamedFiles) -> str:
    """Return the name that a line of a split means: one that has an annotation if there is any, else the likeliest.

    A line is a name, with or without the ending of its picture or annotation. Folders of another place may come before
    it, and a second column after it.
    """
    candidates = list(_names_in(line))
    return next((name for name in candidates if annotations.find(name)), candidates[-1])


def _names_in(line: str) -> Iterator[str]:
    columns = SECOND_COLUMN.fullmatch(line)
    for text in [line, columns[1]] if columns else [line]:
        path = PurePosixPath(text)
        is_below = not path.is_absolute() and ".." not in path.parts  # else it says where another folder had the file
        for name in dict.fromkeys([*([str(path)] if is_below else []), _basename(text)]):
            yield name
            if _ending(name) in (*ENDINGS, ".xml"):
                yield _stem(name)


class PictureFinder:
    """Finds the picture of an annotation in JPEGImages."""

    def __init__(self, folder: Path, annotations: NamedFiles) -> None:
        self.pictures = NamedFiles(folder, ENDINGS)
        self.annotations = annotations

    def candidates(self, name: str, filename: str) -> list[Path]:
        """Return all files among which `find` chooses: those of the annotation's own name, and its <filename>."""
        return [*self.pictures.find(name), *self._find_filename(name, filename)]

    def find(self, name: str, filename: str) -> tuple[Path, str | None]:
        """Return the picture of the annotation `name`, and why the choice is suspicious, or None.

        The picture of the annotation's own name decides; only if there is none, the annotation's <filename>. Raises
        ValueError that says why there is no picture, or why it is another annotation's.
        """
        own = self.pictures.find(name)
        if len(own) == 1 and filename in ("", own[0].name) and own[0].stem == _basename(name):  # as nearly always
            return own[0], None
        named = self._find_filename(name, filename)
        picture = next((path for path in named if path in own), next(iter([*own, *named]), None))
        if picture is None:
            other = f", nor is there its <filename> {filename}" if filename else ""
            raise ValueError(f"no picture in JPEGImages is called {name} and ends in {', '.join(ENDINGS)}{other}")
        stem = str(picture.relative_to(self.pictures.folder).with_suffix(""))
        owners = self.annotations.find(stem)
        if owners and self.annotations.find(name)[:1] != owners[:1]:
            owner = owners[0].name
            raise ValueError(f"no picture in JPEGImages is called {name}, and {picture.name} is that of {owner}")
        base = _fold(_basename(filename))
        if filename and _fold(_basename(name)) not in (base, _stem(base)):
            return picture, OTHER_FILENAME
        return picture, SEVERAL_PICTURES if len(own) > 1 and not named else None

    def _find_filename(self, name: str, filename: str) -> list[Path]:
        """Return the pictures that <filename> names, with its folders or without, the likeliest first."""
        if not filename:
            return []
        base = _basename(filename)
        folders = [PurePosixPath(name).parent, PurePosixPath(filename.replace("\\", "/")).parent]
        found = []
        for folder in folders:
            if folder.is_absolute() or ".." in folder.parts:  # where the annotation was made, not where it is now
                continue
            path = self.pictures.folder / folder / base
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for long names)
                found.append(path)
            found += self.pictures.find(str(folder / (_stem(base) if _ending(base) in ENDINGS else base)))
        return found


def _basename(filename: str) -> str:
    return filename.replace("\\", "/").rpartition("/")[2]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million names)


def _stem(name: str) -> str:
    """Return a name without its ending; folders before it stay."""
    return os.path.splitext(name)[0]  # noqa: PTH122 (a million names)


def _nfc(name: str) -> str:
    return normalize("NFC", name)


def _fold(name: str) -> str:
    return normalize("NFC", name).casefold()
