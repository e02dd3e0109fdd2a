"""Score a model on the conversations of a split: one row for each route and number of teachers."""

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from bbu_train.collator.packed import PackedCollator
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError
from bbu_train.metrics.detection import full_detection_metrics
from bbu_train.model.preprocessing import Preprocessing
from bbu_train.predict.routes import PicturePredictions, Predictor
from bbu_train.runtime.progress_bar import ProgressBar
from bbu_train.training import loader, planning
from bbu_train.types.batch import Batch
from bbu_train.types.samples import Role, Sample, SampleVisit


@dataclass(frozen=True)
class EvaluationRow:
    """The scores of one route with `num_teachers` before each picture.

    `metrics` holds those of `full_detection_metrics` and
        student_lm  cross entropy of the true answers in nats per token; the same for both routes
        seconds     per picture, the median over batches, without the time to load pictures
        malformed   share of the answers that are malformed; route "generated" only
    """

    route: str
    num_teachers: int
    num_pictures: int
    metrics: dict[str, float]


class Conversations:
    """The samples of a split with `num_teachers` before each, drawn from the training pictures.

    They are drawn by data.teachers.validation_seed, also where the data fixes others.

    Raises InputError if the pool has too few teachers, or if a conversation has more tokens than the model has
    positions.
    """

    def __init__(
        self,
        data: Splits,
        samples: Sequence[Sample],
        num_teachers: int,
        builder: ConversationBuilder,
        preprocessing: Preprocessing,
    ):
        self.num_teachers = num_teachers
        self.samples = [data.with_validation_teachers(sample, num_teachers) for sample in samples]
        limit = preprocessing.max_positions
        self.source = loader.SampleSource(
            self.samples,
            loader.unchanged,
            lambda sample, _: sample.teachers,
            builder,
            preprocessing.cost,
            limit,
            "error",
            data.teachers.validation_seed,
        )
        longest = max(self.source.num_tokens(SampleVisit(0, i)) for i in range(len(self.samples)))
        if longest > limit:
            shorter = (
                number
                for number in range(num_teachers - 1, -1, -1)
                if all(
                    builder.num_tokens(each, data.with_validation_teachers(each, number).teachers or ()) <= limit
                    for each in samples
                )
            )
            most = next(shorter, None)
            remedy = "It is too long without any, too" if most is None else f"teachers={most} fits"
            raise InputError(
                f"teachers={num_teachers}: the longest conversation would have {longest} tokens, and the model has "
                f"positions for {limit}. {remedy}."
            )

    def batches(self, batch_size: int, num_workers: int) -> Iterator[Batch]:
        """Yield packed batches of the conversations with their true answers."""
        packed = PackedCollator(self.source.builder.picture_format, self.source.max_tokens, self.source.too_long)
        steps = planning.in_order(self.source, batch_size)
        for [batch] in loader.batches(self.source, packed, steps, 1, 0, 1, num_workers):
            yield batch


def default_max_new_tokens(builder: ConversationBuilder, samples: Sequence[Sample]) -> int:
    """Return twice the token count of the longest true answer of `samples`, its end token included."""
    return 2 * max(len(builder.tokenizer.encode(builder.answer(sample.student))) + 1 for sample in samples)


def measure(
    predictor: Predictor, conversations: Sequence[Conversations], batch_size: int, num_workers: int
) -> list[EvaluationRow]:
    """Return a row for each route of the predictor and, within a route, for each number of teachers."""
    rows = {}
    # The routes run one after the other, so that each has its own time.
    predictors = {route: replace(predictor, routes=(route,)) for route in predictor.routes}
    num_passes = sum(len(each.samples) * (1 + len(predictors)) for each in conversations)
    with ProgressBar(num_passes, "evaluating") as progress:
        for each in conversations:
            loss = _student_loss(predictor, each.batches(batch_size, num_workers), progress)
            predictions: dict[str, list[PicturePredictions]] = {route: [] for route in predictors}
            seconds: dict[str, list[float]] = {route: [] for route in predictors}
            for samples, batch in predictor.prompts(each.samples, batch_size, num_workers):
                for route, predict in predictors.items():
                    start = time.perf_counter()
                    predictions[route] += predict(samples, batch)
                    seconds[route].append((time.perf_counter() - start) / len(samples))
                    progress.update(len(samples))
            for route in predictors:
                metrics = _detection_metrics(predictions[route])
                metrics |= {"student_lm": loss, "seconds": statistics.median(seconds[route])}
                rows[route, each.num_teachers] = EvaluationRow(route, each.num_teachers, len(each.samples), metrics)
    return [rows[route, each.num_teachers] for route in predictors for each in conversations]


@torch.no_grad()
def _student_loss(predictor: Predictor, batches: Iterable[Batch], progress: ProgressBar) -> float:
    """Return -log p of the students' true answers in nats per token, as `loss/student_lm` in training."""
    total, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for batch in (batch.to(predictor.device) for batch in batches):
        with predictor.autocast():
            losses = predictor.model(batch).token_losses
        total += torch.where(batch.label_roles == Role.STUDENT, losses, 0).double().sum().cpu()
        num_tokens += batch.counts.student_tokens
        progress.update(len(batch.sample_ids))
    return float(total) / num_tokens


def _detection_metrics(predictions: Sequence[PicturePredictions]) -> dict[str, float]:
    """Score the predictions of a single route."""
    pictures = [each.sample.student for each in predictions]
    answers = [each.generated for each in predictions if each.generated is not None]
    if not answers:
        return full_detection_metrics(pictures, [each.head for each in predictions])
    malformed = sum(each.is_malformed for each in answers) / len(answers)
    return full_detection_metrics(pictures, [each.prediction for each in answers]) | {"malformed": malformed}
