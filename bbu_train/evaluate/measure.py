"""From a model and the conversations of a split to numbers: a row for each route and number of teachers."""

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from bbu_train.collator.packed import Packed
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError
from bbu_train.metrics.detection import full_detection_metrics
from bbu_train.predict.routes import Found, Predictor
from bbu_train.training import loader, planning
from bbu_train.types.batch import Batch
from bbu_train.types.samples import Draw, Role, Sample


@dataclass(frozen=True)
class EvaluationRow:
    """What one route found with so many teachers before each picture.

    `metrics` are those of `scoring.full_score`; `student_lm`, the cross entropy of the true answers in nats a token,
    which is the same for both routes; `seconds` a picture, the median over batches, pictures read beforehand; and of
    the written route `malformed`, the share of its answers.
    """

    route: str
    num_teachers: int
    num_pictures: int
    metrics: dict[str, float]


class Conversations:
    """The samples of a split with `num_teachers` before each, drawn from the training pictures as in validation.

    They are drawn and measured here: raises InputError where there are too few teachers or too many tokens.
    """

    def __init__(
        self,
        data: Splits,
        samples: Sequence[Sample],
        num_teachers: int,
        builder: ConversationBuilder,
        preprocessing,
    ):
        self.num_teachers = num_teachers
        self.samples = [data.with_validation_teachers(sample, num_teachers) for sample in samples]
        limit = preprocessing.max_positions
        how = builder, preprocessing.cost, limit, "error", data.teachers.seed
        self.source = loader.SampleSource(self.samples, loader.as_it_is, lambda sample, _: sample.teachers, *how)
        longest = max(self.source.num_tokens(Draw(0, i)) for i in range(len(self.samples)))
        if longest > limit:
            raise InputError(
                f"teachers={num_teachers}: the longest conversation would have {longest} tokens, and the model has "
                f"positions for {limit}. Ask for fewer teachers."
            )

    def batches(self, batch_size: int, num_workers: int) -> Iterator[Batch]:
        """With their true answers, packed."""
        packed = Packed(self.source.builder.picture_format, self.source.max_tokens, self.source.too_long)
        steps = planning.in_order(self.source, batch_size)
        for [batch] in loader.batches(self.source, packed, steps, 1, 0, 1, num_workers):
            yield batch


def twice_the_longest_answer(builder: ConversationBuilder, samples: Sequence[Sample]) -> int:
    """Tokens of an answer that is longer than any that was learned, by a wide margin."""
    return 2 * max(len(builder.text.ids(builder.answer(sample.student))) + 1 for sample in samples)


def measured(
    predictor: Predictor, conversations: Sequence[Conversations], batch_size: int, num_workers: int
) -> list[EvaluationRow]:
    """A row for each of the predictor's routes and each number of teachers, in this order."""
    rows = {}
    routes = {route: replace(predictor, routes=(route,)) for route in predictor.routes}
    num_passes = sum(len(each.samples) * (1 + len(routes)) for each in conversations)
    with tqdm(total=num_passes, unit="picture") as progress:
        for each in conversations:
            loss = _student_loss(predictor, each.batches(batch_size, num_workers), progress)
            found: dict[str, list[Found]] = {route: [] for route in routes}
            seconds: dict[str, list[float]] = {route: [] for route in routes}
            for samples, batch in predictor.prompts(each.samples, batch_size, num_workers):
                for route, its in routes.items():  # each by itself, so that each has a time of its own
                    began = time.perf_counter()
                    found[route] += its(samples, batch)
                    seconds[route].append((time.perf_counter() - began) / len(samples))
                    progress.update(len(samples))
            for route in routes:
                metrics = _scored(found[route]) | {"student_lm": loss, "seconds": statistics.median(seconds[route])}
                rows[route, each.num_teachers] = EvaluationRow(route, each.num_teachers, len(each.samples), metrics)
    return [rows[route, each.num_teachers] for route in routes for each in conversations]


@torch.no_grad()
def _student_loss(predictor: Predictor, batches: Iterable[Batch], progress: tqdm) -> float:
    """-log p of the students' true answers, in nats a token: `loss/student_lm` of a run."""
    total, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for batch in (batch.to(predictor.device) for batch in batches):
        with predictor.autocast():
            losses = predictor.model(batch).token_losses
        total += torch.where(batch.label_roles == Role.STUDENT, losses, 0).double().sum().cpu()
        num_tokens += batch.counts.student_tokens
        progress.update(len(batch.sample_ids))
    return float(total) / num_tokens


def _scored(found: Sequence[Found]) -> dict[str, float]:
    """The predictions of one route."""
    pictures = [each.sample.student for each in found]
    answers = [each.generated for each in found if each.generated is not None]
    if not answers:
        return full_detection_metrics(pictures, [each.head for each in found])
    malformed = sum(each.is_malformed for each in answers) / len(answers)
    return full_detection_metrics(pictures, [each.prediction for each in answers]) | {"malformed": malformed}
