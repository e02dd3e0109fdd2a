"""GeneratedTokens answers as predictions, which are scored and drawn like those of the head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bbu_train.conversation import answer
from bbu_train.conversation.patches import resized_size
from bbu_train.conversation.text import Text
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, PictureFormat


@dataclass(frozen=True)
class GeneratedAnswer:
    """`is_malformed`: something of `text` is no object in the picture. What can be read of it is in `prediction`."""

    text: str
    prediction: Prediction
    is_malformed: bool


def parse_generated(
    ids: Sequence[int], probabilities: Sequence[float], picture: Picture, text: Text, picture_format: PictureFormat
) -> GeneratedAnswer:
    """The answer that `ids` spell, up to the end token, its boxes in pixels of the original picture.

    The score of a box is the mean probability of the tokens that write its object. Boxes end where the picture does;
    one that is inside out, or has no area in the picture, is left out. It never raises, whatever was written.
    """
    pieces = text.pieces(list(ids))
    written = "".join(pieces)
    width, height = resized_size(picture, picture_format)
    parsed = answer.parse(written, width / picture.width, height / picture.height)
    boxes = np.array([item.box_xyxy for item in parsed.objects], dtype=float).reshape(-1, 4)
    boxes = boxes.clip(0, [picture.width, picture.height] * 2)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    scores = _means(pieces, probabilities, parsed.spans)
    descriptions = tuple(item.description for item, good in zip(parsed.objects, has_area, strict=True) if good)
    is_malformed = not (parsed.is_complete and has_area.all())
    return GeneratedAnswer(written, Prediction(boxes[has_area], scores[has_area], descriptions), bool(is_malformed))


def _means(pieces: list[str], probabilities: Sequence[float], spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """The mean probability of the tokens of each span of characters.

    A token that begins or ends within a span belongs to it; one that adds nothing, as the first bytes of a Chinese
    character do, stands where the next begins.
    """
    values = np.array(probabilities, dtype=float)
    lengths = np.array([len(piece) for piece in pieces], dtype=int)
    ends = lengths.cumsum()
    starts = ends - lengths
    inside = [(starts < last) & (np.maximum(ends, starts + 1) > first) for first, last in spans]
    return np.array([values[tokens].mean() for tokens in inside])
