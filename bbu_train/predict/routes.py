"""Predictions by both routes, the head and the generated answer, from one pass of the vision tower."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from bbu_train.collator.prompts import left_pad
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.model import generation
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.predict import generated_answer
from bbu_train.predict.generated_answer import GeneratedAnswer
from bbu_train.training import loader, validation
from bbu_train.types.batch import Batch
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Sample


@dataclass(frozen=True)
class PicturePredictions:
    """The predictions of both routes for the student's picture of `sample`; None for a route that did not run."""

    sample: Sample
    head: Prediction | None
    generated: GeneratedAnswer | None


@dataclass(frozen=True)
class Predictor:
    """A model with everything that turns samples into predictions.

    `autocast` is that of the run's engine. `routes` holds "head", "generated" or both.
    """

    model: GroundingModel
    builder: ConversationBuilder
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    routes: Sequence[str]
    max_new_tokens: int

    def prompts(
        self, samples: Sequence[Sample], batch_size: int, num_workers: int
    ) -> Iterator[tuple[Sequence[Sample], Batch]]:
        """Yield `batch_size` samples at a time with their prompts; `num_workers` processes load pictures in advance.

        Sample ids must be unique. Samples whose teachers are None get none.
        """
        groups = [samples[first : first + batch_size] for first in range(0, len(samples), batch_size)]
        return zip(groups, loader.prefetch(self._encode_prompts, groups, num_workers), strict=True)

    def _encode_prompts(self, samples: Sequence[Sample]) -> Batch:
        conversations = [self.builder.converse(sample, sample.teachers or (), with_answer=False) for sample in samples]
        encoded = [self.builder.encode(conversation) for conversation in conversations]
        return left_pad(encoded, self.builder.picture_format)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Batch) -> list[PicturePredictions]:
        """Return the predictions of all `routes` for each sample; `prompts` are those of `samples`."""
        tokenizer, picture_format = self.builder.tokenizer, self.builder.picture_format
        batch = prompts.to(self.device)
        answers: list[GeneratedAnswer | None] = [None] * len(samples)
        heads: dict[str, Prediction] = {}
        with self.autocast():
            if "generated" in self.routes:
                (ids, probabilities), detections = generation.generate(
                    self.model, batch, tokenizer.end, self.max_new_tokens
                )
                rows = zip(ids.tolist(), probabilities.tolist(), samples, strict=True)
                answers = [
                    generated_answer.parse_generated(*row, sample.student, tokenizer, picture_format)
                    for *row, sample in rows
                ]
            else:
                detections = self.model(batch).detections
            if "head" in self.routes:
                heads = validation.predict(detections, samples, tokenizer)
        return [
            PicturePredictions(sample, heads.get(sample.id), answer)
            for sample, answer in zip(samples, answers, strict=True)
        ]
