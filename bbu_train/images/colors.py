"""The colours of classes in drawings: light ones, on which dark letters are legible."""

import hashlib
from collections import Counter
from collections.abc import Iterable

Color = tuple[int, int, int]

DARK: Color = (24, 27, 33)
WHITE: Color = (255, 255, 255)
GREY: Color = (226, 229, 234)
UNKNOWN: Color = (200, 200, 200)
COLORS: list[Color] = [
    (255, 105, 97),
    (80, 200, 255),
    (120, 230, 120),
    (255, 200, 60),
    (200, 150, 255),
    (255, 150, 60),
    (70, 225, 200),
    (255, 130, 205),
    (190, 215, 70),
    (140, 170, 255),
]


class ClassColors:
    """The colour of each class, the same in all pictures of all commands that give the same `classes`.

    Each of `classes`, in sorted order, starts at the colour that its name hashes to, and takes the next one that the
    fewest classes have. Any other class is `UNKNOWN`, or has that of its hash if `classes` is
    empty.
    """

    def __init__(self, classes: Iterable[str]) -> None:
        self._chosen: dict[str, int] = {}
        for name in sorted(set(classes)):
            self._choose(name)

    def __getitem__(self, name: str) -> Color:
        if self._chosen and name not in self._chosen:
            return UNKNOWN
        return COLORS[self._chosen.get(name, _hash(name))]

    @property
    def classes(self) -> list[str]:
        """The given classes, sorted."""
        return list(self._chosen)

    def _choose(self, name: str) -> None:
        num_classes = Counter(self._chosen.values())
        from_hash = [(_hash(name) + i) % len(COLORS) for i in range(len(COLORS))]
        self._chosen[name] = min(from_hash, key=lambda index: num_classes[index])


def text_color(background: Color) -> Color:
    """Return the colour of letters that are legible on `background`."""
    return DARK if 0.3 * background[0] + 0.6 * background[1] + 0.1 * background[2] > 110 else WHITE


def _hash(name: str) -> int:
    return hashlib.blake2b(name.encode()).digest()[0] % len(COLORS)
