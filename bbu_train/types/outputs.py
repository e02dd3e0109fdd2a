"""What a model gives for a batch, what a loss makes of that, and the boxes predicted for one picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class DenoisingOutputs:
    """What the head makes of true boxes that it was given with noise, `groups` times each.

    Of the first of each two the noise was small, and the box is to be found again; of the second it was large, and that
    there is no object is to be seen. The boxes are those of the first.
    """

    boxes_cxcywh: Float[Tensor, "layers objects groups 4"]
    objectness_logits: Float[Tensor, "layers objects groups 2"]


@dataclass(frozen=True)
class DenseOutputs:
    """What the head makes of each image token of the student's picture by itself. `objects` says whose box it is to
    find, several tokens that of one object and most that of none, which is -1. `mask` is False for padding."""

    boxes_cxcywh: Float[Tensor, "samples tokens 4"]
    objectness_logits: Float[Tensor, "samples tokens"]
    objects: Int[Tensor, "samples tokens"]
    mask: Bool[Tensor, "samples tokens"]


@dataclass(frozen=True)
class Detections:
    """What the head says. The last of `layers` is the answer, the others are for auxiliary losses.

    `boxes_logits` and `boxes_cxcywh` are the boxes before and after the sigmoid.
    `caption_losses(samples, queries, caption_ids, most)` gives the cross entropy of each caption token, teacher-forced
    on the query of its object and 0 where padded; it needs the matching, which the loss makes. `most` is the largest
    number of objects of a sample.
    `describe(end_token, max_tokens)` decodes a caption for every query, greedily: token ids of shape (samples, queries,
    at most max_tokens), `end_token` after the end.
    `denoised`, `dense`: None outside of training, and for a head that does not learn so.
    """

    boxes_logits: Float[Tensor, "layers samples queries 4"]
    boxes_cxcywh: Float[Tensor, "layers samples queries 4"]
    objectness_logits: Float[Tensor, "layers samples queries"]
    caption_losses: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    generate_captions: Callable[[int, int], Tensor]
    denoising: DenoisingOutputs | None = None
    dense: DenseOutputs | None = None


@dataclass(frozen=True)
class Outputs:
    """What the model says of a batch: the cross entropy of each supervised token and, with a head, its detections."""

    token_losses: Float[Tensor, "supervised"]
    detections: Detections | None


Losses = dict[str, Float[Tensor, ""]]
"""Sums, never means, by the name under which they are logged (`bbox_giou` is logged as `loss/bbox_giou`)."""


@dataclass(frozen=True)
class Prediction:
    """What was found in one picture: boxes in pixels of the upright original, a score and a description for each."""

    boxes_xyxy: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    descriptions: tuple[str, ...]
