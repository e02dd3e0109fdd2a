"""One annotation file of a Pascal VOC folder: its elements, and the objects that they describe."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from bbu_train.data.annotations import LabelledObject, PictureChecker, Reading, clean_description, has_text
from bbu_train.data.boxes import Box
from bbu_train.data.encodings import codec_of
from bbu_train.data.findings import Action, Finding
from bbu_train.data.unused_elements import USED, count_unused, looks_like_object
from bbu_train.data.voc_files import PictureFinder
from bbu_train.types.samples import Object, Picture, Sample

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FLAGS = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
UNKNOWN = ("", "none", "null", "nan", "unspecified", "unknown", "undefined", "n/a", "-", "?")


def parse(path: Path) -> Element:
    """Return the root element of an annotation. All tags are in lower case and without a namespace.

    Raises ValueError that says what is wrong, such as ":3: malformed XML".
    """
    try:
        data = path.read_bytes()
        codec = codec_of(data)
        root = ElementTree.fromstring(data.decode(codec).lstrip())
    except ElementTree.ParseError as error:
        raise ValueError(f":{error.position[0]}: malformed XML: {error}") from None
    except UnicodeDecodeError as error:
        text = f": not {error.encoding} at byte {error.start + 1}; <?xml encoding=...?> must name the file's encoding"
        raise ValueError(text) from None
    except (OSError, LookupError, UnicodeError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(f": {getattr(error, 'strerror', None) or error}") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2].lower()
    if root.tag != "annotation":
        raise ValueError(f": expected <annotation>, found <{root.tag}>")
    return root


class AnnotationReader:
    """Reads one annotation and collects its findings. `where` names it, such as "Annotations/a.xml".

    `difficult` and `parts` are the values of data.difficult and data.parts.
    """

    def __init__(self, where: str, checker: PictureChecker, difficult: str, parts: str) -> None:
        self.where = where
        self.checker = checker
        self.difficult = difficult
        self.parts = parts
        self.findings: list[Finding] = []

    def read(self, path: Path, name: str, pictures: PictureFinder) -> Reading:
        """Return what the annotation file `path` holds. `name` is its name without ending."""
        try:
            root = parse(path)
        except ValueError as error:
            self.findings.append(Finding(Action.ERROR, f"{self.where}{error}", "annotations that cannot be read"))
            return Reading(None, self.findings, {})
        picture = self._picture(root, name, pictures)
        return Reading(Sample(self.where, picture, None) if picture else None, self.findings, count_unused(root))

    def _picture(self, root: Element, name: str, pictures: PictureFinder) -> Picture | None:
        objects = [candidate for candidate in self._objects(root) if candidate]
        for each in (root, root.find("size")):
            self._refuse_repeated(each, "")
        unread = [each for each in root if each.tag not in USED["annotation"] and looks_like_object(each)]
        if unread:
            text = f"{self.where} <{unread[0].tag}>"
            self.findings.append(Finding(Action.NOTED, text, "elements that look like an <object> are not read"))
        try:
            picture_path, suspicion = pictures.find(name, _text(root, "filename"))
        except ValueError as error:
            self._error("no picture", str(error))
            return None
        if suspicion:
            filename = _text(root, "filename")
            self.findings.append(
                Finding(Action.NOTED, f"{self.where}: <filename> {filename!r}, read {picture_path.name}", suspicion)
            )
        picture = self.checker.check(self.where, picture_path, objects, self.findings)
        if picture is None:
            return None
        self._check_size(root, picture)
        return self._without_difficult(picture) if self.difficult == "drop" else picture

    def _objects(self, root: Element) -> Iterator[LabelledObject | None]:
        """Yield the objects, wherever they are, and report elements that hold a box but are not read."""
        elements = list(root.iter("object"))
        read = set(elements)
        for number, element in enumerate(elements, 1):
            label = f"object {number}"
            if _count(element, "object") > 1:
                text = "holds another <object>: put each into the annotation itself"
                self._error("an <object> in another", text, label)
            yield self._object(element, label)
            parts = [part for part in element.iter("part") if part.find("bndbox") is not None]
            read.update(parts)
            if parts:
                yield from self._parts(parts, f"{label} ({clean_description(_text(element, 'name'))})")
        num_boxes = sum(element.find("bndbox") is not None for element in read)
        if num_boxes == _count(root, "bndbox") == _count(root, CORNERS[0]):  # nearly always, and fast to tell
            return
        for element in root.iter():
            is_read = element in read or element.tag == "bndbox"
            if not is_read and any(child.tag in ("bndbox", CORNERS[0]) for child in element):
                text = f"<{element.tag}> holds a box but is not read: objects are called <object>"
                self._error("boxes that are not read", text)

    def _parts(self, parts: list[Element], label: str) -> Iterator[LabelledObject | None]:
        if self.parts == "train":
            for number, part in enumerate(parts, 1):
                yield self._object(part, f"{label} part {number}")
        elif self.parts == "drop":
            dropped = Finding(Action.DROPPED, f"{self.where} {label}: {len(parts)} <part>", "part of an object")
            self.findings += [dropped] * len(parts)
        else:
            remedy = "data.parts=drop leaves them out, data.parts=train makes them objects"
            self._error("<part>", f"holds {len(parts)} <part> with a box: {remedy}", label)

    def _object(self, element: Element, label: str) -> LabelledObject | None:
        description = clean_description(_text(element, "name"))
        label = f"{label} ({description})" if description else label
        if not has_text(description):
            self._error("no name", "no <name>, which is the description of an object", label)
        for each in (element, element.find("bndbox")):
            self._refuse_repeated(each, label)
        difficult = _text(element, "difficult").lower()
        if difficult not in FLAGS and difficult not in UNKNOWN:
            self._error("<difficult>", f"<difficult> is {difficult!r}, expected 0 or 1", label)
        box = _read_box(element.find("bndbox"))
        if box is None:
            text = f"{self.where} {label}: box that is not four numbers {_show_box(element.find('bndbox'))}"
            self.findings.append(self.checker.bad_box(text, "not four numbers"))
            return None
        return LabelledObject(label, Object(box, description, FLAGS.get(difficult, False)))

    def _refuse_repeated(self, element: Element | None, label: str) -> None:
        """Report a repeated child element where only the first would be used."""
        tags = [] if element is None else [child.tag for child in element if child.tag != "object"]
        for tag in USED[element.tag] if element is not None else ():
            if tags.count(tag) > 1:
                self._error("repeated elements", f"more than one <{tag}>: keep one of them", label)

    def _check_size(self, root: Element, picture: Picture) -> None:
        """Report a <size> that is not the picture's upright size: its boxes then belong to other pixels.

        A side that is missing, blank or not above 0 is unknown.
        """
        texts = [_text(root, f"size/{side}") for side in ("width", "height")]
        for text, side in zip(texts, (picture.width, picture.height), strict=True):
            number = _number(text)
            is_unknown = text.lower() in UNKNOWN or (number is not None and number <= 0)
            if not is_unknown and number != side:
                upright = f"{picture.path.name}, upright {picture.width} x {picture.height}"
                size = " x ".join(text or "?" for text in texts)
                self._error("sizes", f"its size {size} differs from that of {upright}")
                return

    def _without_difficult(self, picture: Picture) -> Picture:
        """Return the picture with its difficult objects neither trained nor scored."""
        difficult = tuple(each for each in picture.objects if each.is_difficult)
        others = tuple(each for each in picture.objects if not each.is_difficult)
        self.findings += [Finding(Action.DROPPED, self.where, "difficult")] * len(difficult)
        return replace(picture, objects=others, ignored=difficult)

    def _error(self, kind: str, text: str, label: str = "") -> None:
        where = f"{self.where} {label}" if label else self.where
        self.findings.append(Finding(Action.ERROR, f"{where}: {text}", kind))


def _count(element: Element, tag: str) -> int:
    """Return the number of elements called `tag` in an element, itself included."""
    return sum(1 for _ in element.iter(tag))


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _read_box(element: Element | None) -> Box | None:
    if element is None:
        return None
    x1, y1, x2, y2 = (_number(_text(element, corner)) for corner in CORNERS)
    return None if x1 is None or y1 is None or x2 is None or y2 is None else (x1, y1, x2, y2)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _show_box(element: Element | None) -> str:
    if element is None:
        return "(there is no bndbox)"
    texts = [_text(element, corner) or "?" for corner in CORNERS]
    return f"[{', '.join(texts)}], expected {', '.join(f'<{corner}>' for corner in CORNERS)}"
