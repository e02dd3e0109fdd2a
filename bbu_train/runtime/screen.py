"""The first screen of a run: sections with a heading of one word, wrapped and cut so that they fit on one screen.

A part of the program that has something to show there returns a `Section`.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LINES, MAX_COLUMNS = 40, 120
MORE = "... {} more lines: environment.json"


@dataclass(frozen=True)
class Section:
    """What the screen says under a heading. `more` has lines that only `as_dict` shows, and so environment.json."""

    heading: str
    lines: Sequence[str]
    more: Sequence[str] = ()


def as_text(sections: Sequence[Section], max_lines: int = MAX_LINES) -> str:
    """Return the sections with aligned text, in at most `max_lines` lines; the longest sections are cut first.

    A line is wrapped before MAX_COLUMNS, but a word, such as a path, is never broken. A section without lines is left
    out.
    """
    sections = [section for section in sections if section.lines]
    indent = max((len(section.heading) for section in sections), default=0) + 2
    wrapped = [[part for line in section.lines for part in _wrap(line, MAX_COLUMNS - indent)] for section in sections]
    shown = [len(lines) for lines in wrapped]
    while sum(shown) > max_lines:
        shown[shown.index(max(shown))] -= 1
    text = []
    for section, lines, number in zip(sections, wrapped, shown, strict=True):
        kept = lines if number == len(lines) else [*lines[: number - 1], MORE.format(len(lines) - number + 1)]
        labels = [section.heading, *[""] * (len(kept) - 1)]
        text += [f"{label:{indent}}{line}" for label, line in zip(labels, kept, strict=True)]
    return "\n".join(text)


def as_dict(sections: Sequence[Section]) -> dict[str, list[str]]:
    """Return all lines of each section by its heading. A section without lines is left out."""
    return {section.heading: [*section.lines, *section.more] for section in sections if section.lines}


def _wrap(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
