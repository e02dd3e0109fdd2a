"""The one place where a conversation is written down, for training, evaluation and prediction alike."""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bbu_train.conversation import answer, patches
from bbu_train.conversation.positions import positions
from bbu_train.conversation.text import Text
from bbu_train.ops import boxes
from bbu_train.types.batch import Encoded
from bbu_train.types.samples import Conversation, Picture, PictureFormat, Role, Sample, Turn


class ConversationBuilder:
    """Samples -> Conversation -> Encoded, with Qwen2.5-VL's chat template.

    The template is laid piece by piece, so that spans and roles are known and no text can pose as a control token;
    the ids equal those of the checkpoint's own template (a test compares them).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        picture_format: PictureFormat,
        system: str,
        question: str,
        order: answer.Order,
    ):
        self.order = order
        self.system = system
        self.question = question
        self.picture_format = picture_format
        self.text = Text(tokenizer)
        self._ids = lru_cache(maxsize=10_000)(self.text.ids)  # of what comes again: all but whole answers
        self._caption = lru_cache(maxsize=10_000)(self._caption_ids)
        self._num_system_tokens = len(self._system_ids())
        assert len(self.text.ids("42")) == 2, "answers are read digit by digit"
        self._tokens_of = lru_cache(maxsize=10_000)(lambda text: len(self.text.ids(text)))
        self._num_turn_tokens = cache(self._count_turn_tokens)

    def converse(self, sample: Sample, teachers: Sequence[Picture], with_answer: bool) -> Conversation:
        """Teachers with their answers first, the student last; without its answer where the model is to write it."""
        turns = [Turn(Role.TEACHER, picture, self.question, self.answer(picture)) for picture in teachers]
        student = self.answer(sample.student) if with_answer else None
        turns.append(Turn(Role.STUDENT, sample.student, self.question, student))
        return Conversation(sample.id, tuple(turns))

    def answer(self, picture: Picture) -> str:
        """The true answer for a picture, in pixels of the resized picture."""
        assert picture.objects is not None, f"{picture.path} is not annotated, so it has no answer"
        return answer.render(picture.objects, self.order, *self._trip(picture))

    def num_tokens(self, sample: Sample, teachers: Sequence[Picture]) -> int:
        """The length of the encoded conversation with all answers, from sizes in file headers and texts alone."""
        # A view is new in every epoch: kept, it would only take memory.
        count = self._num_turn_tokens if sample.student.view is None else self._count_turn_tokens
        return self._num_system_tokens + sum(map(self._num_turn_tokens, teachers)) + count(sample.student)

    def num_patches(self, sample: Sample, teachers: Sequence[Picture]) -> list[int]:
        """Of each picture of the conversation, from sizes in file headers alone."""
        return [math.prod(self._grid(picture)) for picture in (*teachers, sample.student)]

    def _count_turn_tokens(self, picture: Picture) -> int:
        unanswered = Turn(Role.STUDENT, picture, self.question, "")
        num_tokens = sum(len(ids) for ids, _, _ in self._turn_pieces(unanswered))
        assert picture.objects is not None, f"{picture.path} is not annotated, so it has no answer"
        return num_tokens + answer.num_tokens(picture.objects, self.order, *self._trip(picture), self._tokens_of)

    def _trip(self, picture: Picture) -> tuple[float, float, int, int]:
        """What boxes are multiplied by, in x and in y, to lie in the resized picture, and its width and height."""
        width, height = patches.resized_size(picture, self.picture_format)
        return width / picture.width, height / picture.height, width, height

    def max_caption_tokens(self, samples: Sequence[Sample]) -> int:
        """Tokens of the longest description of a student's object, its end token included."""
        descriptions = {item.description for sample in samples for item in sample.student.objects or ()}
        return 1 + max((len(self.text.ids(description)) for description in descriptions), default=0)

    def encode(self, conversation: Conversation) -> Encoded:
        """Tokens, roles, positions, pixels and targets of one conversation, without noise. Reads its picture files."""
        student = conversation.student.picture
        ids, roles, runs, memory_end = self._tokens(conversation)
        described = student.objects or ()
        boxes_xyxy = torch.tensor([item.box_xyxy for item in described], dtype=torch.float32).reshape(-1, 4)
        pixels = [patches.read_patches(turn.picture, self.picture_format) for turn in conversation.turns]
        return Encoded(
            sample_id=conversation.sample_id,
            input_ids=torch.from_numpy(ids),
            roles=torch.from_numpy(roles),
            position_ids=positions(runs),
            image_positions=torch.from_numpy(np.flatnonzero(ids == self.text.image)),
            patches=pixels[0] if len(pixels) == 1 else torch.cat(pixels),  # which would copy a single one, too
            grid_thw=torch.tensor([self._grid(turn.picture) for turn in conversation.turns]),
            memory_end=memory_end,
            boxes_cxcywh=boxes.scale(boxes.xyxy_to_cxcywh(boxes_xyxy), 1 / student.width, 1 / student.height),
            captions=tuple(self._caption(item.description) for item in described),
            annotated=student.objects is not None,
            noise=torch.zeros(len(described), 4),
        )

    def _caption_ids(self, description: str) -> Tensor:
        return torch.tensor([*self.text.ids(description), self.text.end])

    def _system_ids(self) -> list[int]:
        return [self.text.start, *self._ids(f"system\n{self.system}"), self.text.end, *self._ids("\n")]

    def _turn_pieces(self, turn: Turn):
        """A turn of the template: token ids, whose answer they are, and for image tokens their (height, width)."""
        text = self.text
        _, height, width = (side // self.picture_format.merge_size for side in self._grid(turn.picture))
        yield [text.start, *self._ids("user\n"), text.vision_start], Role.NONE, None
        yield [text.image] * (height * width), Role.NONE, (height, width)
        yield [text.vision_end, *self._ids(turn.prompt), text.end, *self._ids("\n")], Role.NONE, None
        yield [text.start, *self._ids("assistant\n")], Role.NONE, None
        if turn.answer is not None:
            yield [*answer.token_ids(turn.answer, self._ids), text.end], turn.role, None
            yield self._ids("\n"), Role.NONE, None

    def _tokens(self, conversation: Conversation):
        """Ids and roles (by numpy, which reads a list several times faster than torch), runs, the memory's end."""
        system = (self._system_ids(), Role.NONE, None)
        pieces, roles, shapes = zip(*chain([system], *map(self._turn_pieces, conversation.turns)), strict=True)
        lengths = list(map(len, pieces))
        before_answer = roles.index(Role.STUDENT) if Role.STUDENT in roles else len(roles)
        runs = [shape or length for shape, length in zip(shapes, lengths, strict=True)]
        ids = np.array(list(chain.from_iterable(pieces)))
        return ids, np.repeat(np.array(roles), lengths), runs, sum(lengths[:before_answer])

    def _grid(self, picture: Picture) -> tuple[int, int, int]:
        width, height = patches.resized_size(picture, self.picture_format)
        return 1, height // self.picture_format.patch_size, width // self.picture_format.patch_size
