"""The one builder of prompts: training, evaluation and prediction all encode conversations with it."""

import math
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bbu_train.conversation import answer, patches
from bbu_train.conversation.mrope_positions import positions
from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.errors import InputError
from bbu_train.ops import boxes
from bbu_train.ops.activations import Count
from bbu_train.types.batch import Encoded
from bbu_train.types.samples import Conversation, Picture, PictureFormat, Role, Sample, Turn


class _Piece(NamedTuple):
    """A part of the template.

    ids          its token ids
    role         whose answer it is; NONE for a prompt
    image_shape  its (height, width) in image tokens if it is a picture
    """

    ids: Sequence[int]
    role: Role
    image_shape: tuple[int, int] | None = None


class ConversationBuilder:
    """Turns a `Sample` into a `Conversation`, and that into `Encoded`, with Qwen2.5-VL's chat template.

    The template is assembled from pieces of token ids, so that spans and roles are known and text cannot become a
    control token. The ids equal those of the checkpoint's own template; a test compares them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        picture_format: PictureFormat,
        system: str,
        question: str,
        order: answer.Order,
        layout: str,
    ) -> None:
        if layout not in answer.LAYOUTS:
            raise InputError(f"conversation.layout={layout}: expected {' or '.join(answer.LAYOUTS)}")
        self.order = order
        self.layout = answer.LAYOUTS[layout]
        self.system = system
        self.question = question
        self.picture_format = picture_format
        self.tokenizer = PlainTextTokenizer(tokenizer)
        self._ids = lru_cache(maxsize=10_000)(self.tokenizer.encode)  # for pieces of text, which repeat between samples
        self._caption = lru_cache(maxsize=10_000)(self._caption_ids)
        self._num_system_tokens = len(self._system_ids())
        assert len(self.tokenizer.encode("42")) == 2, "answers are encoded digit by digit"
        self._count_tokens = lru_cache(maxsize=10_000)(lambda text: len(self.tokenizer.encode(text)))
        self._cached_num_turn_tokens = cache(self._num_turn_tokens)
        self._cached_num_caption_tokens = cache(lambda text: 1 + len(self.tokenizer.encode(text)))
        self._num_question_tokens = self._count_question_tokens()

    def converse(self, sample: Sample, teachers: Sequence[Picture], with_answer: bool) -> Conversation:
        """Return the turns: the teachers with their answers, then the student.

        `with_answer=False` leaves out the student's answer, for the model to write.
        """
        turns = [Turn(Role.TEACHER, picture, self.question, self.answer(picture)) for picture in teachers]
        student = self.answer(sample.student) if with_answer else None
        turns.append(Turn(Role.STUDENT, sample.student, self.question, student))
        return Conversation(sample.id, tuple(turns))

    def answer(self, picture: Picture) -> str:
        """Return the true answer for a picture, in pixels of the resized picture."""
        assert picture.objects is not None, f"{picture.path} is not annotated, so it has no answer"
        return answer.render(picture.objects, self.order, self.layout, *self._scales_and_size(picture))

    def num_tokens(self, sample: Sample, teachers: Sequence[Picture]) -> int:
        """Return the length of the encoded conversation with all answers, from picture sizes and texts alone."""
        # Views are not cached: every epoch has new ones, so the cache would only take memory.
        is_cached = sample.student.view is None
        count = self._cached_num_turn_tokens if is_cached else self._num_turn_tokens
        return self._num_system_tokens + sum(map(self._cached_num_turn_tokens, teachers)) + count(sample.student)

    def num_patches(self, sample: Sample, teachers: Sequence[Picture]) -> list[int]:
        """Return the number of patches of each picture of the conversation, from picture sizes alone."""
        return [math.prod(self._grid(picture)) for picture in (*teachers, sample.student)]

    def _num_turn_tokens(self, picture: Picture) -> int:
        empty_answer = Turn(Role.STUDENT, picture, self.question, "")
        num_tokens = sum(len(piece.ids) for piece in self._turn_pieces(empty_answer))
        assert picture.objects is not None, f"{picture.path} is not annotated, so it has no answer"
        geometry = self._scales_and_size(picture)
        return num_tokens + answer.num_tokens(picture.objects, self.order, self.layout, *geometry, self._count_tokens)

    def _scales_and_size(self, picture: Picture) -> tuple[float, float, int, int]:
        """Return (scale_x, scale_y, width, height) of the resized picture; the scales map boxes into it."""
        width, height = patches.resized_size(picture, self.picture_format)
        return width / picture.width, height / picture.height, width, height

    def num_caption_tokens(self, description: str) -> int:
        """Return the number of tokens of a caption, including the end token."""
        return self._cached_num_caption_tokens(description)

    def num_answer_tokens(self, num_tokens: Count, num_pictures: Count, num_merged: Count) -> Count:
        """Return how many tokens of a conversation of `num_tokens` belong to answers.

        It has `num_pictures` pictures, with `num_merged` image tokens together. Sums over conversations are not right,
        because each begins with the system turn; arrays with one entry for each conversation are.
        """
        return num_tokens - self._num_system_tokens - num_merged - num_pictures * self._num_question_tokens

    def _count_question_tokens(self) -> int:
        """Count the tokens of a turn without its image tokens and its answer; they are the same for all pictures."""
        picture = Picture(Path(), 1000, 1000, ())
        pieces = self._turn_pieces(Turn(Role.STUDENT, picture, self.question, ""))
        return sum(len(piece.ids) for piece in pieces if piece.role is Role.NONE and piece.image_shape is None)

    def encode(self, conversation: Conversation) -> Encoded:
        """Return tokens, roles, positions, pixels and targets of one conversation, without noise.

        Reads the picture files.
        """
        student = conversation.student.picture
        ids, roles, spans, memory_end = self._tokens(conversation)
        objects = student.objects or ()
        boxes_xyxy = torch.tensor([item.box_xyxy for item in objects], dtype=torch.float32).reshape(-1, 4)
        pixels = [patches.read_patches(turn.picture, self.picture_format) for turn in conversation.turns]
        return Encoded(
            sample_id=conversation.sample_id,
            input_ids=torch.from_numpy(ids),
            roles=torch.from_numpy(roles),
            position_ids=positions(spans),
            image_positions=torch.from_numpy(np.flatnonzero(ids == self.tokenizer.image)),
            patches=pixels[0] if len(pixels) == 1 else torch.cat(pixels),  # cat would copy a single picture, too
            grid_thw=torch.tensor([self._grid(turn.picture) for turn in conversation.turns]),
            memory_end=memory_end,
            boxes_cxcywh=boxes.scale(boxes.xyxy_to_cxcywh(boxes_xyxy), 1 / student.width, 1 / student.height),
            captions=tuple(self._caption(item.description) for item in objects),
            annotated=student.objects is not None,
            noise=torch.zeros(len(objects), 4),
        )

    def _caption_ids(self, description: str) -> Tensor:
        return torch.tensor([*self.tokenizer.encode(description), self.tokenizer.end])

    def _system_ids(self) -> list[int]:
        return [self.tokenizer.start, *self._ids(f"system\n{self.system}"), self.tokenizer.end, *self._ids("\n")]

    def _turn_pieces(self, turn: Turn) -> Iterator[_Piece]:
        """Yield the pieces of a turn: the question with its picture, then the answer if there is one."""
        tokenizer = self.tokenizer
        _, height, width = (side // self.picture_format.merge_size for side in self._grid(turn.picture))
        yield _Piece([tokenizer.start, *self._ids("user\n"), tokenizer.vision_start], Role.NONE)
        yield _Piece([tokenizer.image] * (height * width), Role.NONE, (height, width))
        yield _Piece([tokenizer.vision_end, *self._ids(turn.prompt), tokenizer.end, *self._ids("\n")], Role.NONE)
        yield _Piece([tokenizer.start, *self._ids("assistant\n")], Role.NONE)
        if turn.answer is not None:
            yield _Piece([*answer.token_ids(turn.answer, self._ids), tokenizer.end], turn.role)
            yield _Piece(self._ids("\n"), Role.NONE)

    def _tokens(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray, list[int | tuple[int, int]], int]:
        """Return the ids, the roles, the spans that `positions` takes, and the length up to the student's answer."""
        system = _Piece(self._system_ids(), Role.NONE)
        pieces, roles, shapes = zip(*chain([system], *map(self._turn_pieces, conversation.turns)), strict=True)
        lengths = list(map(len, pieces))
        num_before_answer = roles.index(Role.STUDENT) if Role.STUDENT in roles else len(roles)
        spans = [shape or length for shape, length in zip(shapes, lengths, strict=True)]
        ids = np.array(list(chain.from_iterable(pieces)))  # numpy reads a list several times faster than torch
        return ids, np.repeat(np.array(roles), lengths), spans, sum(lengths[:num_before_answer])

    def _grid(self, picture: Picture) -> tuple[int, int, int]:
        """Return the (time, height, width) of a picture in patches."""
        width, height = patches.resized_size(picture, self.picture_format)
        return 1, height // self.picture_format.patch_size, width // self.picture_format.patch_size
