"""Clip predicted boxes to their picture. Training, evaluate and predict score and draw only what is left."""

from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture


def clip_to_picture(prediction: Prediction, picture: Picture) -> Prediction:
    """Return the prediction with its boxes clipped to the picture.

    A box that is inverted, or has no area in the picture, is left out. Both routes are clipped here, the head's boxes
    and the generated ones, so that neither gains or loses by what lies outside of a picture.
    """
    boxes = prediction.boxes_xyxy.clip(0, [picture.width, picture.height] * 2)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    descriptions = tuple(text for text, is_kept in zip(prediction.descriptions, has_area, strict=True) if is_kept)
    return Prediction(boxes[has_area], prediction.scores[has_area], descriptions)
