"""The outputs of the model, the losses computed from them, and the predictions for one picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class DenoisingOutputs:
    """The head's predictions for contrastive denoising queries (DINO): true boxes with noise, `groups` pairs for each.

    Index 0 of a pair has small noise and must reconstruct its box. Index 1 has large noise and must predict
    "no object".

    boxes_cxcywh       after the sigmoid, for index 0 only
    objectness_logits  for both indices of each pair
    """

    boxes_cxcywh: Float[Tensor, "layers objects groups 4"]
    objectness_logits: Float[Tensor, "layers objects groups 2"]


@dataclass(frozen=True)
class DenseOutputs:
    """The head's predictions from each image token of the student's picture alone, without a query.

    boxes_cxcywh       after the sigmoid
    objectness_logits  before the sigmoid
    objects            index of the object that the token must find, -1 for none: most tokens have none, and several
                       tokens may have the same object
    mask               False for padding
    """

    boxes_cxcywh: Float[Tensor, "samples vision 4"]
    objectness_logits: Float[Tensor, "samples vision"]
    objects: Int[Tensor, "samples vision"]
    mask: Bool[Tensor, "samples vision"]


@dataclass(frozen=True)
class Detections:
    """The predictions of the head. The last layer is the result; the others are for auxiliary losses.

    boxes_logits       boxes before the sigmoid
    boxes_cxcywh       boxes after the sigmoid, as shares of the picture's width and height
    objectness_logits  before the sigmoid
    caption_losses     `caption_losses(sample_of_object, query_of_object, caption_ids, max_objects)` returns the cross
                       entropy of the first tokens of each caption, as many as the head writes, 0 for padding. Each
                       object is teacher-forced on its matched query; no sample has more than `max_objects`.
                       It is a function because the loss, which comes later, computes the matching.
    generate_captions  `generate_captions(end_token)` decodes a caption for every query greedily: token ids of shape
                       (samples, queries, tokens of the longest caption), filled up with `end_token`
    denoising          None for a head in evaluation mode, and for heads without denoising
    dense              None for a head in evaluation mode, and for heads without dense predictions
    """

    boxes_logits: Float[Tensor, "layers samples queries 4"]
    boxes_cxcywh: Float[Tensor, "layers samples queries 4"]
    objectness_logits: Float[Tensor, "layers samples queries"]
    caption_losses: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    generate_captions: Callable[[int], Tensor]
    denoising: DenoisingOutputs | None = None
    dense: DenseOutputs | None = None


@dataclass(frozen=True)
class Outputs:
    """The outputs of the model for a batch.

    token_losses  cross entropy of each supervised token
    detections    None for a model without a head
    """

    token_losses: Float[Tensor, "supervised"]
    detections: Detections | None


Losses = dict[str, Float[Tensor, ""]]
"""Losses by the name under which they are logged: `bbox_giou` is logged as `loss/bbox_giou`.

Calling a criterion returns sums; its `means` divides them.
"""


@dataclass(frozen=True)
class Prediction:
    """The predictions for one picture.

    boxes_xyxy    in pixels of the upright original picture
    scores        confidence of each box
    descriptions  "type/property/extra" of each box
    """

    boxes_xyxy: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    descriptions: tuple[str, ...]
