"""Answers as text: Qwen2.5-VL's grounding JSON, in absolute pixels of the resized picture."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bbu_train.ops.numbers import is_number
from bbu_train.types.samples import Object

Order = Callable[[str, Sequence[int]], tuple[Any, ...]]
"""The sort key of an object in the answer, from its label and its box in pixels; see `bbu_train.conversation.order`."""

# Not only JSONDecodeError: thousands of digits raise a plain ValueError, deep nesting a RecursionError.
_JSON_ERRORS = (ValueError, RecursionError)
_OPENING = '{"bbox_2d": ['
# This never matches inside a label, where quotes are escaped.
_COORDINATES = re.compile(r'(?<="bbox_2d": \[)(\d+), (\d+), (\d+), (\d+)(?=\], "label": )')
_FENCE = re.compile(r"^\s*```(?:json)?\s*|\s*```\s*$")


@dataclass(frozen=True)
class Layout:
    """The text around and between the JSON objects of an answer, and the answer without objects."""

    opening: str
    separator: str
    closing: str
    empty: str


LAYOUTS = {
    # The published model answers so: cookbooks/spatial_understanding.ipynb in the repository QwenLM/Qwen2.5-VL.
    "qwen": Layout("```json\n[\n\t", ",\n\t", "\n]\n```", "```json\n[]\n```"),
    "compact": Layout("[", ", ", "]", "[]"),  # as json.dumps writes it
}
_LABEL_KEYS = ("label", "desc", "text_content")


@dataclass(frozen=True)
class Parsed:
    """The objects that could be read from an answer; `is_complete` is False if any part could not be read.

    `spans` are the [start, end) offsets of each object in the text.
    """

    objects: tuple[Object, ...]
    spans: tuple[tuple[int, int], ...]
    is_complete: bool


def render(
    objects: Sequence[Object], order: Order, layout: Layout, scale_x: float, scale_y: float, width: int, height: int
) -> str:
    """Return the answer for `objects` in a picture that is resized to `width` x `height` pixels.

    Boxes are scaled by (scale_x, scale_y) and rounded to whole pixels, at least one pixel wide and high. Objects are
    sorted by `order`.
    """
    rows = _rows(objects, order, scale_x, scale_y, width, height)
    if not rows:
        return layout.empty
    return layout.opening + layout.separator.join(json.dumps(row, ensure_ascii=False) for row in rows) + layout.closing


def token_ids(text: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
    """Return the token ids of an answer that `render` wrote, by calling `encode` on pieces of it.

    The pieces repeat, so a cached `encode` is fast. Their ids are those of the whole text: Qwen's tokenizer makes one
    token of every digit and merges nothing across it, so the text between coordinates can be encoded on its own.
    """
    ids: list[int] = []
    end = 0
    for match in _COORDINATES.finditer(text):
        ids += encode(text[end : match.start()])
        for i, number in enumerate(match.groups()):
            ids += encode(", ") if i else ()
            for digit in number:
                ids += encode(digit)
        end = match.end()
    return ids + list(encode(text[end:]))


def num_tokens(
    objects: Sequence[Object],
    order: Order,
    layout: Layout,
    scale_x: float,
    scale_y: float,
    width: int,
    height: int,
    count_tokens: Callable[[str], int],
) -> int:
    """Return `len(token_ids(render(...)))` without encoding the answer; `count_tokens` counts the tokens of a text."""
    rows = _rows(objects, order, scale_x, scale_y, width, height)
    if not rows:
        return count_tokens(layout.empty)
    num_digits = sum(len("%d%d%d%d" % tuple(row["bbox_2d"])) for row in rows)  # noqa: UP031 (it takes half the time)
    *labels, last = (row["label"] for row in rows)
    commas = 3 * len(rows) * count_tokens(", ")
    ends = count_tokens(layout.opening + _OPENING) + count_tokens(_closing(last) + layout.closing)
    between = sum(
        count * count_tokens(_closing(label) + layout.separator + _OPENING) for label, count in Counter(labels).items()
    )
    return num_digits + commas + ends + between


def _closing(label: str) -> str:
    return f'], "label": {json.dumps(label, ensure_ascii=False)}}}'


def _rows(
    objects: Sequence[Object], order: Order, scale_x: float, scale_y: float, width: int, height: int
) -> list[dict[str, Any]]:
    """Return the JSON objects of the answer, in its order."""
    rows = []
    for item in objects:
        x1, x2 = _whole_pixels(item.box_xyxy[0] * scale_x, item.box_xyxy[2] * scale_x, width)
        y1, y2 = _whole_pixels(item.box_xyxy[1] * scale_y, item.box_xyxy[3] * scale_y, height)
        rows.append({"bbox_2d": [x1, y1, x2, y2], "label": item.description})
    rows.sort(key=lambda row: order(row["label"], row["bbox_2d"]))
    return rows


def _whole_pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    first, last = round(low), round(high)
    if first == last:  # thinner than a pixel: take the pixel that holds the middle
        first = math.floor((low + high) / 2)
    first = min(max(first, 0), limit - 1)
    return first, min(max(last, first + 1), limit)


def parse(text: str, scale_x: float, scale_y: float) -> Parsed:
    """Read the objects of an answer of any layout, bare or fenced, complete or cut off. Never raises.

    `scale_x` and `scale_y` are those of `render`: boxes are divided by them. JSON that is not an object with four
    finite numbers and a label, or a label by one of the other names that the published model uses, is skipped and makes
    the answer incomplete.
    """
    try:
        rows = json.loads(_FENCE.sub("", text))
    except _JSON_ERRORS:
        rows = None
    objects, spans = [], []
    for row, span in _find_json_objects(text):
        if (label := _label_of(row)) is not None:
            x1, y1, x2, y2 = row["bbox_2d"]
            objects.append(Object((x1 / scale_x, y1 / scale_y, x2 / scale_x, y2 / scale_y), label))
            spans.append(span)
    is_list = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    return Parsed(tuple(objects), tuple(spans), is_list and len(objects) == len(rows))


def _find_json_objects(text: str) -> Iterator[tuple[Any, tuple[int, int]]]:
    """Yield every outermost JSON object and its [start, end) offsets."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            row, end = decoder.raw_decode(text, start)
            yield row, (start, end)
        except _JSON_ERRORS:
            end = start + 1
        start = text.find("{", end)


def _label_of(row: object) -> str | None:
    """Return the label of a JSON object that describes an object of the picture; None if it does not."""
    if not isinstance(row, dict):
        return None
    label = next((row[key] for key in _LABEL_KEYS if key in row), None)
    box = row.get("bbox_2d")
    has_box = isinstance(box, list) and len(box) == 4 and all(is_number(x) and abs(x) < 1e9 for x in box)
    return label if has_box and isinstance(label, str) else None
