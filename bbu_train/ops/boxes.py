"""Operations on boxes: conversion between xyxy and cxcywh, scaling, IoU and GIoU."""

import torch
from jaxtyping import Float
from torch import Tensor


def xyxy_to_cxcywh(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Convert (left, top, right, bottom) to (centre x, centre y, width, height), in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def cxcywh_to_xyxy(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Convert (centre x, centre y, width, height) to (left, top, right, bottom), in the same unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)


def scale(boxes: Float[Tensor, "*n 4"], width: float, height: float) -> Float[Tensor, "*n 4"]:
    """Multiply x by `width` and y by `height`, for xyxy and cxcywh alike. To normalise, pass the reciprocals."""
    return boxes * boxes.new_tensor([width, height, width, height])


def area(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Return the area of xyxy boxes; an inverted box has area 0."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def _iou_and_union(a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]) -> tuple[Tensor, Tensor]:
    corners = torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1)
    intersection = area(corners)
    union = area(a) + area(b) - intersection
    return _ratio(intersection, union), union


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, and 0 where whole is 0.

    The gradient is finite too, unlike that of a division whose result is masked.
    """
    positive = whole > 0
    return torch.where(positive, part, 0) / torch.where(positive, whole, 1)


def paired_iou(a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]) -> Float[Tensor, "*n"]:
    """Return the IoU of each pair of xyxy boxes; shapes broadcast. Two zero-area boxes give 0."""
    return _iou_and_union(a, b)[0]


def paired_generalized_iou(a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]) -> Float[Tensor, "*n"]:
    r"""Return the GIoU of each pair of boxes: IoU - |C \ (A u B)| / |C|, with C the smallest box that holds both.

    Rezatofighi et al. 2019. Boxes are xyxy in any one unit, and shapes broadcast; the value lies in [-1, 1].
    Zero-area boxes give IoU 0, never NaN.
    """
    return paired_ious(a, b)[1]


def paired_ious(
    a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Return `paired_iou` and `paired_generalized_iou` at once."""
    iou, union = _iou_and_union(a, b)
    hull = area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1))
    return iou, iou - _ratio(hull - union, hull)


def iou(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Return the IoU of every xyxy box of `a` with every one of `b`."""
    return paired_iou(a[:, None], b[None])
