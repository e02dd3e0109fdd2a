"""All six losses of dual supervision."""

from torch import Tensor

from bbu_train.loss import detection
from bbu_train.loss.language import Language
from bbu_train.loss.matcher import Matcher
from bbu_train.ops.compile import compile_dynamic
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Detections, Losses, Outputs

TERMS = ("bbox_l1", "bbox_giou", "objectness")


class Joint(Language):
    """The language losses, and for a model with a head box L1, box GIoU, objectness and captions.

    Box terms are divided by the number of objects; objectness, a sum over all queries, and captions by the number of
    annotated student pictures. Earlier decoder layers and proposals, each with a matching of its own, add the same
    terms but the caption times `aux_weight`, under names that begin with `aux_`. What a head makes of noised true boxes
    adds them once more, times `denoising_weight`, under names that begin with `denoised_`, and what it makes of each
    image token by itself, times `dense_weight`, under names that begin with `dense_`: all divided by the number of
    objects.
    """

    counted_by = Language.counted_by | {
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
        "dense_objectness": "objects",
    }

    def __init__(
        self,
        weights: dict[str, float],
        matcher: Matcher,
        aux_weight: float,
        denoising_weight: float,
        dense_weight: float,
        objectness: detection.ObjectnessLoss,
        compile: bool,
    ):
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
        self.denoised_sums = compile_dynamic(detection.denoised_sums) if compile else detection.denoised_sums
        self.dense_sums = compile_dynamic(detection.dense_sums) if compile else detection.dense_sums

    def __call__(self, outputs: Outputs, batch: Batch) -> Losses:
        """Sums over the batch. A model without a head has the language terms alone."""
        if outputs.detections is None:
            return super().__call__(outputs, batch)
        losses = super().__call__(outputs, batch)
        queries = self.matcher(outputs.detections, batch)
        sums = self._layer_sums(outputs.detections, queries, batch)
        losses |= {name: its[-1] for name, its in sums.items()}
        losses["caption"] = detection.caption_sum(outputs.detections, queries[-1], batch)
        if self.aux_weight > 0 and len(queries) > 1:
            losses |= {f"aux_{name}": its[:-1].sum() for name, its in sums.items()}
        if (denoised := outputs.detections.denoising) is not None:
            said = denoised.boxes_cxcywh, denoised.objectness_logits
            its = self.denoised_sums(*said, batch.boxes_cxcywh, self.objectness)
            losses |= {f"denoising_{name}": loss for name, loss in zip(TERMS, its, strict=True)}
        if (dense := outputs.detections.dense) is not None:
            said = dense.boxes_cxcywh, dense.objectness_logits, dense.objects, dense.mask
            its = self.dense_sums(*said, batch.boxes_cxcywh, batch.annotated, self.objectness)
            losses |= {f"dense_{name}": loss for name, loss in zip(TERMS, its, strict=True)}
        return losses

    def _layer_sums(self, detections: Detections, queries: Tensor, batch: Batch) -> dict[str, Tensor]:
        said = detections.boxes_cxcywh, detections.objectness_logits
        true = batch.sample_of_object, batch.boxes_cxcywh, batch.annotated
        return dict(zip(TERMS, self.layer_sums(*said, queries, *true, self.objectness), strict=True))
