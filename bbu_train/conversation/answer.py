"""The written answer: Qwen2.5-VL's grounding JSON, in absolute pixels of the resized picture."""

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
"""What a written object is sorted by: `bbu_train.conversation.order` has some."""

# Not only JSONDecodeError: thousands of digits raise a plain ValueError, deep nesting a RecursionError.
_NO_JSON = (ValueError, RecursionError)
_OPENING = '{"bbox_2d": ['
_COORDINATES = re.compile(
    r'(?<="bbox_2d": \[)(\d+), (\d+), (\d+), (\d+)(?=\], "label": )'
)  # in a label quotes are escaped
_FENCE = re.compile(r"^\s*```(?:json)?\s*|\s*```\s*$")


@dataclass(frozen=True)
class Parsed:
    """What could be read of a written answer; `is_complete` is False if something of it could not be.

    `spans` are where each object stands in the text: its first character and the one behind its last.
    """

    objects: tuple[Object, ...]
    spans: tuple[tuple[int, int], ...]
    is_complete: bool


def render(objects: Sequence[Object], order: Order, scale_x: float, scale_y: float, width: int, height: int) -> str:
    """The answer for `objects`, whose boxes are scaled by (scale_x, scale_y) to a picture of `width` x `height` pixels.

    Whole pixels, sorted by what `order` makes of a label and its box. A box keeps at least one pixel a side.
    """
    return json.dumps(_rows(objects, order, scale_x, scale_y, width, height), ensure_ascii=False)


def token_ids(text: str, ids_of: Callable[[str], Sequence[int]]) -> list[int]:
    """Of what `render` gives, where `ids_of` gives those of a text. It is asked for few different ones.

    Qwen's tokenizer makes a token of every digit and joins nothing across one, so what lies between the coordinates can
    be read by itself.
    """
    ids: list[int] = []
    end = 0
    for found in _COORDINATES.finditer(text):
        ids += ids_of(text[end : found.start()])
        for i, number in enumerate(found.groups()):
            ids += ids_of(", ") if i else ()
            for digit in number:
                ids += ids_of(digit)
        end = found.end()
    return ids + list(ids_of(text[end:]))


def num_tokens(
    objects: Sequence[Object],
    order: Order,
    scale_x: float,
    scale_y: float,
    width: int,
    height: int,
    tokens_of: Callable[[str], int],
) -> int:
    """How many `token_ids` gives for what `render` gives, where `tokens_of` counts those of a text."""
    rows = _rows(objects, order, scale_x, scale_y, width, height)
    if not rows:
        return tokens_of("[]")
    num_digits = sum(len("%d%d%d%d" % tuple(row["bbox_2d"])) for row in rows)  # noqa: UP031 (it takes half the time)
    *labels, last = (row["label"] for row in rows)
    between = tokens_of(f"[{_OPENING}") + 3 * len(rows) * tokens_of(", ") + tokens_of(f"{_closing(last)}]")
    repeated = Counter(labels).items()
    return num_digits + between + sum(times * tokens_of(f"{_closing(label)}, {_OPENING}") for label, times in repeated)


def _closing(label: str) -> str:
    return f'], "label": {json.dumps(label, ensure_ascii=False)}}}'


def _rows(
    objects: Sequence[Object], order: Order, scale_x: float, scale_y: float, width: int, height: int
) -> list[dict[str, Any]]:
    """What `render` writes."""
    rows = []
    for item in objects:
        x1, x2 = _whole_pixels(item.box_xyxy[0] * scale_x, item.box_xyxy[2] * scale_x, width)
        y1, y2 = _whole_pixels(item.box_xyxy[1] * scale_y, item.box_xyxy[3] * scale_y, height)
        rows.append({"bbox_2d": [x1, y1, x2, y2], "label": item.description})
    rows.sort(key=lambda row: order(row["label"], row["bbox_2d"]))
    return rows


def _whole_pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    first, last = round(low), round(high)
    if first == last:  # thinner than a pixel: the pixel in which its middle lies
        first = math.floor((low + high) / 2)
    first = min(max(first, 0), limit - 1)
    return first, min(max(last, first + 1), limit)


def parse(text: str, scale_x: float, scale_y: float) -> Parsed:
    """Read a written answer back: bare or fenced, whole or cut off; `scale_*` undo those of `render`.

    What is no object with four finite numbers and a label is left out, and makes the answer incomplete.
    """
    try:
        rows = json.loads(_FENCE.sub("", text))
    except _NO_JSON:
        rows = None
    objects, spans = [], []
    for row, span in _readable_objects(text):
        if _is_object(row):
            x1, y1, x2, y2 = row["bbox_2d"]
            objects.append(Object((x1 / scale_x, y1 / scale_y, x2 / scale_x, y2 / scale_y), row["label"]))
            spans.append(span)
    is_list = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    return Parsed(tuple(objects), tuple(spans), is_list and len(objects) == len(rows))


def _readable_objects(text: str) -> Iterator[tuple[object, tuple[int, int]]]:
    """Every JSON object that lies in no other, and where it stands."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            row, end = decoder.raw_decode(text, start)
            yield row, (start, end)
        except _NO_JSON:
            end = start + 1
        start = text.find("{", end)


def _is_object(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("label"), str):
        return False
    box = row.get("bbox_2d")
    return isinstance(box, list) and len(box) == 4 and all(is_number(x) and abs(x) < 1e9 for x in box)
