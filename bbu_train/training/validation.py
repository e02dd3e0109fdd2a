"""Losses and average precision on the validation split. Nothing of the training changes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.metrics.detection import detection_metrics
from bbu_train.metrics.picture_bounds import clip_to_picture
from bbu_train.ops import boxes
from bbu_train.runtime import distributed
from bbu_train.training import loader, step_metrics, untrained_head
from bbu_train.training.protocols import Criterion, Engine
from bbu_train.training.setup import RunInputs
from bbu_train.types.batch import Batch, Counts
from bbu_train.types.outputs import Detections, Losses, Prediction
from bbu_train.types.samples import Picture, Sample

CLASSLESS = ("eval/loss/", "eval/agnostic_")
"""The metrics that do not depend on descriptions."""


def evaluate(
    inputs: RunInputs,
    engine: Engine,
    model: nn.Module,
    criterion: Criterion,
    num_workers: int,
    end_if_asked: Callable[[], None],
) -> tuple[dict[str, float], list[tuple[Picture, Prediction]]]:
    """Return metrics as "eval/...", and each validation picture with the head's prediction for it, in order.

    Each rank evaluates a part of the split, and all of them get the result of the whole. `end_if_asked` is called
    before every batch, because an evaluation may outlast the grace of a signal; what it raises abandons the evaluation.
    Predicted boxes are in pixels of the original pictures. A model without a head has no predictions, nor has one whose
    head stays random (`untrained_head.is_scored`).
    """
    by_rank = distributed.gather(evaluate_on_this_rank(inputs, engine, model, criterion, num_workers, end_if_asked))
    metrics, pairs = _merge(criterion, inputs.data.validation, by_rank)
    if "descriptions" in untrained_head.untrained_parts(model.head, criterion):
        metrics = {name: value for name, value in metrics.items() if name.startswith(CLASSLESS)}
    return metrics, pairs


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    if model.head is not None:
        # The head has no dropout. Its mode decides only whether it returns the outputs of denoising and dense losses,
        # which eval/loss/total holds as loss/total does.
        model.head.train()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate_on_this_rank(
    inputs: RunInputs,
    engine: Engine,
    model: nn.Module,
    criterion: Criterion,
    num_workers: int,
    end_if_asked: Callable[[], None],
) -> tuple[Losses, Counts, dict[str, Prediction]]:
    """Return the sums of the losses, what they are divided by, and the predictions by sample."""
    is_scored = untrained_head.is_scored(model.head, criterion)
    samples, tokenizer = inputs.data.validation, inputs.builder.tokenizer
    by_id = {sample.id: sample for sample in samples}
    sums: Losses = {}
    counts = Counts(0, 0, 0, 0)
    predictions: dict[str, Prediction] = {}
    with _evaluation_mode(model):
        for batch in (batch.to(engine.device) for batch in _batches(inputs, num_workers, end_if_asked)):
            # Without gradients every compiled part would get a second graph, which takes longer than most evaluations.
            with torch.compiler.set_stance("force_eager"), engine.autocast():
                outputs = model(batch)
                losses = criterion(outputs, batch)
                if is_scored:
                    batch_samples = [by_id[sample_id] for sample_id in batch.sample_ids]
                    predictions |= predict(outputs.detections, batch_samples, tokenizer)
            _add(sums, {name: loss.double().cpu() for name, loss in losses.items()})
            counts = counts + batch.counts
    return sums, counts, predictions


def predict(detections: Detections, samples: Sequence[Sample], tokenizer: PlainTextTokenizer) -> dict[str, Prediction]:
    """Return every query of every sample: its box in pixels of the original picture, its objectness, its caption.

    Boxes are clipped to the picture (`clip_to_picture`).
    """
    captions = detections.generate_captions(tokenizer.end).tolist()
    scores = detections.objectness_logits[-1].sigmoid().float().cpu()
    boxes_xyxy = boxes.cxcywh_to_xyxy(detections.boxes_cxcywh[-1]).float().cpu()
    return {
        sample.id: clip_to_picture(
            Prediction(
                boxes.scale(boxes_xyxy[i], sample.student.width, sample.student.height).numpy(),
                scores[i].numpy(),
                tuple(tokenizer.decode(ids) for ids in captions[i]),
            ),
            sample.student,
        )
        for i, sample in enumerate(samples)
    }


def _batches(inputs: RunInputs, num_workers: int, end_if_asked: Callable[[], None]) -> Iterator[Batch]:
    """Yield this rank's batches. All ranks call `end_if_asked` equally often, also those with fewer batches."""
    steps = inputs.evaluation_steps[distributed.rank() :: distributed.world_size()]
    batches = loader.batches(inputs.validation, inputs.collator, steps, 1, 0, 1, num_workers)
    for _ in range(math.ceil(len(inputs.evaluation_steps) / distributed.world_size())):
        end_if_asked()
        for (batch,) in islice(batches, 1):
            yield batch


def _merge(
    criterion: Criterion, samples: Sequence[Sample], by_rank: Sequence[tuple[Losses, Counts, dict[str, Prediction]]]
) -> tuple[dict[str, float], list[tuple[Picture, Prediction]]]:
    """Join what the ranks found into metrics and predictions of the whole split."""
    sums, counts, predictions = {}, Counts(0, 0, 0, 0), {}
    for rank_sums, rank_counts, rank_predictions in by_rank:
        _add(sums, rank_sums)
        counts = counts + rank_counts
        predictions |= rank_predictions
    metrics = step_metrics.loss_metrics(criterion, sums, counts)
    pairs = [(sample.student, predictions[sample.id]) for sample in samples if sample.id in predictions]
    if pairs:
        metrics |= detection_metrics(*zip(*pairs, strict=True))
    return step_metrics.prefixed("eval", metrics), pairs


def _add(sums: Losses, more: Losses) -> None:
    for name, loss in more.items():
        sums[name] = sums.get(name, 0) + loss
