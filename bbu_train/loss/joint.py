"""All losses of dual supervision: language and detection."""

from torch import Tensor

from bbu_train.loss import detection
from bbu_train.loss.language import LanguageLoss, check_weights
from bbu_train.loss.matcher import Matcher
from bbu_train.ops.compile import compile_dynamic
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Detections, Losses, Outputs

TERMS = ("bbox_l1", "bbox_giou", "objectness")


class JointLoss(LanguageLoss):
    """The language losses, and for a model with a head box L1, box GIoU, objectness and captions.

    Box terms are divided by the number of objects. Objectness (summed over all queries) and captions are each divided
    by the number of annotated student pictures. Three kinds of extra outputs add the terms again, without captions:

    - `aux_*`, times `aux_weight`: earlier decoder layers and proposals, each with its own matching.
    - `denoising_*`, times `denoising_weight`: noised true boxes (`DenoisingOutputs`), all divided by the number of
      objects, since pictures without objects have none.
    - `dense_*`, times `dense_weight`: each image token (`DenseOutputs`), divided as the terms of the queries. The
      tokens of a picture without objects count as much as those of any other picture.
    """

    divisors = LanguageLoss.divisors | {
        "bbox_l1": "objects",
        "bbox_giou": "objects",
        "objectness": "samples",
        "caption": "samples",
        "aux_bbox_l1": "objects",
        "aux_bbox_giou": "objects",
        "aux_objectness": "samples",
        "denoising_bbox_l1": "objects",
        "denoising_bbox_giou": "objects",
        "denoising_objectness": "objects",
        "dense_bbox_l1": "objects",
        "dense_bbox_giou": "objects",
        "dense_objectness": "samples",
    }
    averaged = divisors | {"caption": "objects"}

    def __init__(
        self,
        weights: dict[str, float],
        matcher: Matcher,
        aux_weight: float,
        denoising_weight: float,
        dense_weight: float,
        objectness: detection.ObjectnessLoss,
        compile: bool,
    ) -> None:
        factors = {"aux_weight": aux_weight, "denoising_weight": denoising_weight, "dense_weight": dense_weight}
        check_weights({f"weights.{name}": weight for name, weight in weights.items()} | factors)
        super().__init__(weights)
        by_term = {"bbox_l1": weights["l1"], "bbox_giou": weights["giou"], "objectness": weights["objectness"]}
        self.weights |= by_term | {"caption": weights["caption"]}
        self.weights |= {f"aux_{name}": aux_weight * weight for name, weight in by_term.items()}
        self.weights |= {f"denoising_{name}": denoising_weight * weight for name, weight in by_term.items()}
        self.weights |= {f"dense_{name}": dense_weight * weight for name, weight in by_term.items()}
        self.matcher = matcher
        self.aux_weight = aux_weight
        self.objectness = objectness
        self.layer_sums = compile_dynamic(detection.layer_sums) if compile else detection.layer_sums
        self.denoising_sums = compile_dynamic(detection.denoising_sums) if compile else detection.denoising_sums
        self.dense_sums = compile_dynamic(detection.dense_sums) if compile else detection.dense_sums

    def __call__(self, outputs: Outputs, batch: Batch) -> Losses:
        """Return sums over the batch. Without a head, return the language terms alone."""
        if outputs.detections is None:
            return super().__call__(outputs, batch)
        losses = super().__call__(outputs, batch)
        query_of_object = self.matcher(outputs.detections, batch)
        sums_by_layer = self._sums_by_layer(outputs.detections, query_of_object, batch)
        losses |= {name: sums[-1] for name, sums in sums_by_layer.items()}
        losses["caption"] = detection.caption_sum(outputs.detections, query_of_object[-1], batch)
        if self.aux_weight > 0 and len(query_of_object) > 1:
            losses |= {f"aux_{name}": sums[:-1].sum() for name, sums in sums_by_layer.items()}
        if (denoising := outputs.detections.denoising) is not None:
            predictions = denoising.boxes_cxcywh, denoising.objectness_logits
            sums = self.denoising_sums(*predictions, batch.boxes_cxcywh, self.objectness)
            losses |= {f"denoising_{name}": loss for name, loss in zip(TERMS, sums, strict=True)}
        if (dense := outputs.detections.dense) is not None:
            predictions = dense.boxes_cxcywh, dense.objectness_logits, dense.objects, dense.mask
            sums = self.dense_sums(*predictions, batch.boxes_cxcywh, batch.annotated, self.objectness)
            losses |= {f"dense_{name}": loss for name, loss in zip(TERMS, sums, strict=True)}
        return losses

    def _sums_by_layer(self, detections: Detections, query_of_object: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the sums of each term, one for each layer."""
        predictions = detections.boxes_cxcywh, detections.objectness_logits
        truth = batch.sample_of_object, batch.boxes_cxcywh, batch.annotated
        return dict(zip(TERMS, self.layer_sums(*predictions, query_of_object, *truth, self.objectness), strict=True))
