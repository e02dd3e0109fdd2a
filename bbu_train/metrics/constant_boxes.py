"""A baseline that ignores the image: it predicts the places where objects usually are."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bbu_train.runtime.seeds import generator
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, class_of


def constant_predictions(
    train_pictures: Sequence[Picture], pictures: Sequence[Picture], num_boxes: int, seed: int
) -> list[Prediction]:
    """Return the same boxes for every one of `pictures`, scaled to its size. A model that does not beat them ignores
    the image.

    The boxes of a class are the k-means centres of its training boxes (cxcywh, normalised by width and height). The
    score of a box is the share of the training boxes of its class that are closest to it. `num_boxes` is divided
    equally among the classes; each class has at least one box, and at most as many as it has different boxes.
    """
    by_class = defaultdict(list)
    for picture in train_pictures:
        size = np.array([picture.width, picture.height] * 2)
        for each in picture.objects or ():
            by_class[class_of(each.description)].append(np.array(each.box_xyxy) / size)
    boxes, scores, descriptions = [np.zeros((0, 4))], [np.zeros(0)], []
    for name in sorted(by_class):
        centres, shares = _cluster(np.array(by_class[name]), max(1, num_boxes // len(by_class)), seed, name)
        boxes.append(centres)
        scores.append(shares)
        descriptions += [name] * len(centres)
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    return [
        Prediction(boxes * np.array([picture.width, picture.height] * 2), scores, tuple(descriptions))
        for picture in pictures
    ]


def _cluster(
    boxes_xyxy: Float[np.ndarray, "n 4"], num_clusters: int, seed: int, name: str
) -> tuple[Float[np.ndarray, "k 4"], Float[np.ndarray, "k"]]:
    """Return the cluster centres as xyxy and each cluster's share of the boxes."""
    from scipy.cluster.vq import kmeans, vq  # takes as long to import as a training step

    x1, y1, x2, y2 = boxes_xyxy.T
    cxcywh = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
    num_clusters = min(num_clusters, len(np.unique(cxcywh, axis=0)))
    centres, _ = kmeans(cxcywh, num_clusters, iter=3, seed=generator("constant boxes", seed, name))
    counts = Counter(vq(cxcywh, centres)[0].tolist())
    shares = np.array([counts[cluster] for cluster in range(len(centres))]) / len(cxcywh)
    cx, cy, width, height = centres.T
    return np.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], axis=1), shares
