"""Which elements of a Pascal VOC annotation are not used, so that nothing is left out without a word."""

import math
from collections import Counter
from xml.etree.ElementTree import Element

USED = {
    "annotation": ("filename", "size", "object"),
    "size": ("width", "height"),
    "object": ("name", "bndbox", "difficult"),
    "part": ("name", "bndbox", "difficult"),
    "bndbox": ("xmin", "ymin", "xmax", "ymax"),
}
"""For each element that is read, those of its child elements that are used."""

NAMES = {"name", "label", "class", "category"}


def count_unused(annotation: Element) -> Counter[str]:
    """Return how often an annotation has each element that is not used, such as {"object/pose": 3, "source": 1}.

    Tags are in lower case and without a namespace. Of an unused element with others inside, only the outer one counts,
    but objects are used wherever they are. A <part> with a box counts as used, whatever data.parts does with it:
    readers report that themselves.
    """
    counts: Counter[str] = Counter()
    _count(annotation, "", counts)
    return counts


def _count(element: Element, path: str, counts: Counter[str]) -> None:
    used = USED.get(element.tag, ())
    for child in element:
        child_path = f"{path}{child.tag}"
        is_part = child.tag == "part" and child.find("bndbox") is not None
        if child.tag in used or child.tag == "object" or is_part:
            if child.tag in USED:
                _count(child, f"{child_path}/", counts)
        elif child.find(".//object") is not None:
            _count(child, f"{child_path}/", counts)
        else:
            counts[child_path] += 1


def looks_like_object(element: Element) -> bool:
    """Whether an element that is not used has a name or label and at least four numbers, as an object has."""
    parts = list(element.iter())
    names = NAMES & {name.lower() for part in parts for name in (part.tag, *part.attrib)}
    texts = [text for part in parts for text in (part.text, *part.attrib.values())]
    holds_objects = any(part.tag == "object" for part in parts)
    return bool(names) and not holds_objects and sum(map(_is_number, texts)) >= 4


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and math.isfinite(float(text))
    except ValueError:
        return False
