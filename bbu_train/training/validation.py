"""The same losses, and average precision, on a validation split; nothing of the training changes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import nn

from bbu_train.metrics.detection import detection_metrics
from bbu_train.ops import boxes
from bbu_train.runtime import distributed
from bbu_train.types.batch import Batch, Counts
from bbu_train.types.outputs import Detections, Losses, Prediction
from bbu_train.types.samples import Picture, Sample


@torch.no_grad()
def evaluate(
    engine,
    model: nn.Module,
    criterion,
    batches: Iterable[list[Batch]],
    samples: Sequence[Sample],
    text,
    max_caption_tokens: int,
) -> tuple[dict[str, float], list[tuple[Picture, Prediction]]]:
    """Metrics under "eval/...", and what the head found in each picture, in the order of `samples`.

    `batches` are this rank's part of the split; the result is that of all ranks, on each of them. `text` reads token
    ids. Boxes come back in pixels of the original pictures. A model without a head finds nothing.
    """
    was_training = model.training
    model.eval()
    sums: Losses = {}
    counts = Counts(0, 0, 0, 0)
    predictions: dict[str, Prediction] = {}
    by_id = {sample.id: sample for sample in samples}
    for batch in (batch.to(engine.device) for micro_batches in batches for batch in micro_batches):
        with engine.autocast():
            outputs = model(batch)
            losses = criterion(outputs, batch)
            if outputs.detections is not None:
                seen = [by_id[sample_id] for sample_id in batch.sample_ids]
                predictions |= predict(outputs.detections, seen, text, max_caption_tokens)
        _add(sums, {name: loss.double().cpu() for name, loss in losses.items()})
        counts = counts + batch.counts
    model.train(was_training)
    return _report(criterion, samples, distributed.gather((sums, counts, predictions)))


def between(batches: Iterator[list[Batch]], num_rounds: int, look: Callable[[], None]) -> Iterator[list[Batch]]:
    """This rank's `batches`, with a `look` of all ranks together before each; ranks that have fewer look as often.

    What `look` raises abandons the evaluation.
    """
    for _ in range(num_rounds):
        look()
        yield from islice(batches, 1)


def _report(criterion, samples: Sequence[Sample], parts) -> tuple[dict[str, float], list[tuple[Picture, Prediction]]]:
    sums, counts, predictions = {}, Counts(0, 0, 0, 0), {}
    for its_sums, its_counts, its_predictions in parts:
        _add(sums, its_sums)
        counts = counts + its_counts
        predictions |= its_predictions
    metrics = {f"loss/{name}": mean for name, mean in criterion.means(sums, counts).items()}
    metrics["loss/total"] = criterion.objective(sums, counts)
    found = [(sample.student, predictions[sample.id]) for sample in samples if sample.id in predictions]
    if found:
        metrics |= detection_metrics(*zip(*found, strict=True))
    return {f"eval/{name}": float(value) for name, value in metrics.items()}, found


def _add(sums: Losses, more: Losses) -> None:
    for name, loss in more.items():
        sums[name] = sums.get(name, 0) + loss


def predict(detections: Detections, samples: Sequence[Sample], text, max_caption_tokens: int) -> dict[str, Prediction]:
    """Every query of every sample as a box in pixels of the original picture, its objectness and its caption."""
    captions = detections.generate_captions(text.end, max_caption_tokens).tolist()
    scores = detections.objectness_logits[-1].sigmoid().float().cpu()
    boxes_xyxy = boxes.cxcywh_to_xyxy(detections.boxes_cxcywh[-1]).float().cpu()
    return {
        sample.id: Prediction(
            boxes.scale(boxes_xyxy[i], sample.student.width, sample.student.height).numpy(),
            scores[i].numpy(),
            tuple(text.read(ids) for ids in captions[i]),
        )
        for i, sample in enumerate(samples)
    }
