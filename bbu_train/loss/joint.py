"""All six losses of dual supervision."""

from torch import Tensor

from bbu_train.compiled import compiled
from bbu_train.loss import detection
from bbu_train.loss.language import Language
from bbu_train.loss.matcher import Matcher
from bbu_train.types import Batch, Detections, Losses, Outputs


class Joint(Language):
    """The language losses, and for a model with a head box L1, box GIoU, objectness and captions.

    Box terms are divided by the number of objects; objectness, a sum over all queries, and captions by the number of
    annotated student pictures. Earlier decoder layers, each with a matching of its own, add the same terms but the
    caption times `aux_weight`, under names that begin with `aux_`.
    """

    counted_by = Language.counted_by | {
        "bbox_l1": "objects",
        "bbox_giou": "objects",
        "objectness": "samples",
        "caption": "samples",
        "aux_bbox_l1": "objects",
        "aux_bbox_giou": "objects",
        "aux_objectness": "samples",
    }

    def __init__(
        self,
        weights: dict[str, float],
        matcher: Matcher,
        aux_weight: float,
        focal_alpha: float,
        focal_gamma: float,
        compile: bool,
    ):
        super().__init__(weights)
        by_term = {"bbox_l1": weights["l1"], "bbox_giou": weights["giou"], "objectness": weights["objectness"]}
        self.weights |= by_term | {"caption": weights["caption"]}
        self.weights |= {f"aux_{name}": aux_weight * weight for name, weight in by_term.items()}
        self.matcher = matcher
        self.aux_weight = aux_weight
        self.focal = {"focal_alpha": focal_alpha, "focal_gamma": focal_gamma}
        self.layer_sums = compiled(detection.layer_sums) if compile else detection.layer_sums

    def __call__(self, outputs: Outputs, batch: Batch) -> Losses:
        """Sums over the batch. A model without a head has the language terms alone."""
        if outputs.detections is None:
            return super().__call__(outputs, batch)
        matching = self.matcher.begin(outputs.detections, batch)
        losses = super().__call__(outputs, batch)  # the device works at these while the costs travel
        queries = matching()
        sums = self._layer_sums(outputs.detections, queries, batch)
        losses |= {name: its[-1] for name, its in sums.items()}
        losses["caption"] = detection.caption_sum(outputs.detections, queries[-1], batch)
        if self.aux_weight > 0 and len(queries) > 1:
            losses |= {f"aux_{name}": its[:-1].sum() for name, its in sums.items()}
        return losses

    def _layer_sums(self, detections: Detections, queries: Tensor, batch: Batch) -> dict[str, Tensor]:
        said = detections.boxes_cxcywh, detections.objectness_logits
        true = batch.sample_of_object, batch.boxes_cxcywh, batch.annotated
        sums = self.layer_sums(*said, queries, *true, **self.focal)
        return dict(zip(("bbox_l1", "bbox_giou", "objectness"), sums, strict=True))
