"""Both routes from pictures to predictions, from one run of the vision tower."""

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
class Found:
    """What was found in the student's picture of `sample`; None for a route that was not taken."""

    sample: Sample
    head: Prediction | None
    generated: GeneratedAnswer | None


@dataclass(frozen=True)
class Predictor:
    """`autocast` is that of the run's engine. `routes` holds "head", "generated" or both."""

    model: GroundingModel
    builder: ConversationBuilder
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    routes: Sequence[str]
    max_new_tokens: int
    max_caption_tokens: int

    def prompts(
        self, samples: Sequence[Sample], batch_size: int, num_workers: int
    ) -> Iterator[tuple[Sequence[Sample], Batch]]:
        """Samples, with their teachers and each with an id of its own, so many at once; pictures are read ahead."""
        groups = [samples[first : first + batch_size] for first in range(0, len(samples), batch_size)]
        return zip(groups, loader.ahead(self._prompts_of, groups, num_workers), strict=True)

    def _prompts_of(self, samples: Sequence[Sample]) -> Batch:
        conversations = [self.builder.converse(each, each.teachers or (), with_answer=False) for each in samples]
        return left_pad([self.builder.encode(each) for each in conversations], self.builder.picture_format)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Batch) -> list[Found]:
        """What is found in the students' pictures of `samples`, by all routes at once."""
        text, picture_format = self.builder.text, self.builder.picture_format
        batch = prompts.to(self.device)
        answers: list[GeneratedAnswer | None] = [None] * len(samples)
        heads: dict[str, Prediction] = {}
        with self.autocast():
            if "generated" in self.routes:
                (ids, probabilities), detections = generation.generate(self.model, batch, text.end, self.max_new_tokens)
                rows = zip(ids.tolist(), probabilities.tolist(), samples, strict=True)
                answers = [
                    generated_answer.parse_generated(*row, sample.student, text, picture_format)
                    for *row, sample in rows
                ]
            else:
                detections = self.model(batch).detections
            if "head" in self.routes:
                heads = validation.predict(detections, samples, text, self.max_caption_tokens)
        return [Found(each, heads.get(each.id), answer) for each, answer in zip(samples, answers, strict=True)]
