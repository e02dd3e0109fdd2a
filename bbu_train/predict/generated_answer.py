"""Answers that the language model generated, as predictions that are scored and drawn like those of the head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bbu_train.conversation import answer
from bbu_train.conversation.patches import resized_size
from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.metrics.picture_bounds import clip_to_picture
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, PictureFormat


@dataclass(frozen=True)
class GeneratedAnswer:
    """The generated `text` and the objects that could be read from it.

    `is_malformed`: some part of `text` is not a valid object inside the picture.
    """

    text: str
    prediction: Prediction
    is_malformed: bool


def parse_generated(
    ids: Sequence[int],
    probabilities: Sequence[float],
    picture: Picture,
    tokenizer: PlainTextTokenizer,
    picture_format: PictureFormat,
) -> GeneratedAnswer:
    """Decode `ids` up to the end token and parse the objects. Boxes are in pixels of the original picture.

    The score of a box is the mean probability of the tokens that spell its object. Boxes are clipped
    (`clip_to_picture`). Any ids are accepted: malformed text raises nothing.
    """
    pieces = tokenizer.pieces(list(ids))
    generated = "".join(pieces)
    width, height = resized_size(picture, picture_format)
    parsed = answer.parse(generated, width / picture.width, height / picture.height)
    boxes = np.array([item.box_xyxy for item in parsed.objects], dtype=float).reshape(-1, 4)
    scores = _mean_probabilities(pieces, probabilities, parsed.spans)
    written = Prediction(boxes, scores, tuple(item.description for item in parsed.objects))
    clipped = clip_to_picture(written, picture)
    return GeneratedAnswer(generated, clipped, not parsed.is_complete or len(clipped.scores) < len(written.scores))


def _mean_probabilities(
    pieces: list[str], probabilities: Sequence[float], spans: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "spans"]:
    """Return the mean token probability of each span of characters.

    A token that begins or ends inside a span belongs to it. A token that adds no character, such as the first byte of
    a Chinese character, is assigned to the position at which the next token begins.
    """
    values = np.array(probabilities, dtype=float)
    lengths = np.array([len(piece) for piece in pieces], dtype=int)
    ends = lengths.cumsum()
    starts = ends - lengths
    inside = [(starts < last) & (np.maximum(ends, starts + 1) > first) for first, last in spans]
    return np.array([values[tokens].mean() for tokens in inside])
