"""Both routes from pictures to predictions, from one run of the vision tower."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from bbu_train import evaluate, written
from bbu_train.collator.prompts import left_padded
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.model import generation
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.scoring import Prediction
from bbu_train.types import Sample
from bbu_train.written import WrittenAnswer


@dataclass(frozen=True)
class Found:
    """What was found in the student's picture of `sample`; None for a route that was not taken."""

    sample: Sample
    head: Prediction | None
    written: WrittenAnswer | None


@dataclass(frozen=True)
class Predictor:
    """`autocast` is that of the run's engine. `routes` holds "head", "written" or both."""

    model: GroundingModel
    builder: ConversationBuilder
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    routes: Sequence[str]
    max_new_tokens: int
    max_caption_tokens: int

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[Found]:
        """Samples, with their teachers and each with an id of its own, at once."""
        text, picture_format = self.builder.text, self.builder.picture_format
        conversations = [self.builder.converse(each, each.teachers or (), with_answer=False) for each in samples]
        batch = left_padded([self.builder.encode(each) for each in conversations], picture_format).to(self.device)
        answers: list[WrittenAnswer | None] = [None] * len(samples)
        heads: dict[str, Prediction] = {}
        with self.autocast():
            if "written" in self.routes:
                (ids, probabilities), detections = generation.answer(self.model, batch, text.end, self.max_new_tokens)
                rows = zip(ids.tolist(), probabilities.tolist(), samples, strict=True)
                answers = [written.read(*row, sample.student, text, picture_format) for *row, sample in rows]
            else:
                detections = self.model(batch).detections
            if "head" in self.routes:
                heads = evaluate.predict(detections, samples, text, self.max_caption_tokens)
        return [Found(each, heads.get(each.id), answer) for each, answer in zip(samples, answers, strict=True)]
