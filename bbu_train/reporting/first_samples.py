"""The model's first input, for a person to check before hours of training.

samples.html, and an excerpt in train.log, show the first training and the first validation conversation, decoded from
their tokens, and how the samples of the first step are laid out in rows. train_samples.jpg shows the pictures of the
first step. All pictures are put together from the patches that the model is given.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.images.colors import ClassColors
from bbu_train.images.sheet import Panel
from bbu_train.reporting import html_page, shown_pictures
from bbu_train.runs import folder as run_folder
from bbu_train.runtime import distributed
from bbu_train.runtime.wording import count_of
from bbu_train.training import loader
from bbu_train.training.planning import StepPlan
from bbu_train.types.batch import Batch, Encoded
from bbu_train.types.samples import PlannedStep, Role, SampleVisit

log = logging.getLogger(__name__)
PAGE, SHEET = "samples.html", "train_samples.jpg"
TEMPLATE = html_page.TEMPLATES / "first_samples.html.j2"
MAX_PICTURES = 16  # in train_samples.jpg
MAX_EMBEDDED = 8  # pictures of each conversation in samples.html, the last ones, so that the page stays below 2 MB
QUALITY = 85  # of train_samples.jpg
MAX_LOGGED_CHARACTERS = 300  # of a piece of text in train.log
ROLE_NAMES = {Role.NONE: "prompt", Role.TEACHER: "teacher", Role.STUDENT: "student"}


class Piece(NamedTuple):
    """Consecutive tokens of one role and one kind ("text", "control" or "image"), and their text."""

    role: Role
    kind: str
    text: str
    num_tokens: int

    @property
    def role_name(self) -> str:
        return ROLE_NAMES[self.role]


class Segment(NamedTuple):
    """The tokens of one sample in a row of a batch, or padding, whose `sample` is None."""

    sample: str | None
    num_tokens: int


def write(
    folder: Path,
    source: loader.SampleSource,
    validation: loader.SampleSource,
    collator: Callable[[Sequence[Encoded]], Batch],
    plan: StepPlan,
    num_micro_batches: int,
) -> list[Path]:
    """Write samples.html and train_samples.jpg into the run's folder and return their paths.

    The page has the rows of this rank, the sheet the first samples of the step, over all ranks.
    """
    step = next(plan.starting_at(0))
    colors = ClassColors(run_folder.classes(folder))
    _write_page(folder / PAGE, source, validation, collator, step, num_micro_batches, colors)
    _write_sheet(folder / SHEET, source, [visit for row in step for visit in row], colors)
    return [folder / PAGE, folder / SHEET]


def _write_sheet(path: Path, source: loader.SampleSource, visits: Sequence[SampleVisit], colors: ClassColors) -> None:
    """Draw the first MAX_PICTURES pictures of a step's samples."""
    panels: list[Panel] = []
    num_samples = 0
    while num_samples < len(visits) and len(panels) < MAX_PICTURES:
        panels += _panels_of(source, source.encode(visits[num_samples]), colors)
        num_samples += 1
    shown = f"the first {num_samples} of {len(visits)} samples" if num_samples < len(visits) else "all samples"
    title = f"First training step, as the model sees it: {shown}, {min(len(panels), MAX_PICTURES)} pictures"
    shown_pictures.sheet(panels[:MAX_PICTURES], colors, title).save(path, quality=QUALITY)


def _panels_of(source: loader.SampleSource, encoded: Encoded, colors: ClassColors) -> list[Panel]:
    builder = source.builder
    return shown_pictures.panels_of(encoded, builder.picture_format, builder.tokenizer, colors)


def _write_page(
    path: Path,
    source: loader.SampleSource,
    validation: loader.SampleSource,
    collator: Callable[[Sequence[Encoded]], Batch],
    step: PlannedStep,
    num_micro_batches: int,
    colors: ClassColors,
) -> None:
    """Write samples.html, and its excerpt to the log."""
    rank, num_ranks = distributed.rank(), distributed.world_size()
    tokenizer = source.builder.tokenizer
    first = {
        "First training conversation": source.encode(step[0][0]),
        "First validation conversation": validation.encode(SampleVisit(0, validation.indices_within_limit(0)[0])),
    }
    conversations = {
        f"{title}: {encoded.sample_id}": list(pieces(encoded, tokenizer)) for title, encoded in first.items()
    }
    pictures = [_panels_of(source, encoded, colors)[-MAX_EMBEDDED:] for encoded in first.values()]
    micro_batches = next(loader.batches(source, collator, [step], num_micro_batches, rank, num_ranks, 0))
    layout = [row for batch in micro_batches for row in rows(batch)]
    layout_title = f"First step on rank {rank} of {num_ranks}: {_describe_layout(layout)}"
    log.debug("%s", "\n".join([*_excerpts(conversations), layout_title, *map(_describe_row, layout)]))
    page = html_page.render(
        TEMPLATE,
        title=f"{path.parent.name}: first samples",
        heading=f"First samples of {path.parent.name}",
        conversations=[
            {"title": title, "pieces": _with_pictures(conversation, panels), "tokens": _token_counts(conversation)}
            for (title, conversation), panels in zip(conversations.items(), pictures, strict=True)
        ],
        layout={"title": layout_title, "rows": list(map(_row_values, layout))},
    )
    path.write_text(page, encoding="utf-8")


def _with_pictures(conversation: Sequence[Piece], panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Return the pieces as values, each image with its panel; fewer panels go to the last images."""
    remaining, shown = list(panels), []
    for piece in reversed(conversation):
        panel = remaining.pop() if piece.kind == "image" and remaining else None
        picture = {} if panel is None else shown_pictures.as_values(panel)
        shown.append(piece._asdict() | {"role_name": piece.role_name, "picture": picture})
    return shown[::-1]


def pieces(encoded: Encoded, tokenizer: PlainTextTokenizer) -> Iterator[Piece]:
    """Split a conversation into pieces of one role and kind.

    The kind is decided by token ids, so a text that spells a control token stays text.
    """

    def kind_of(token: int) -> str:
        if token == tokenizer.image:
            return "image"
        return "text" if tokenizer.control(token) is None else "control"

    tokens = zip(encoded.input_ids.tolist(), map(Role, encoded.roles.tolist()), strict=True)
    for (role, kind), group in groupby(tokens, key=lambda token_role: (token_role[1], kind_of(token_role[0]))):
        ids = [token for token, _ in group]
        decoded = {
            "image": "",
            "control": "".join(tokenizer.control(token) or "" for token in ids),
            "text": tokenizer.decode(ids),
        }
        yield Piece(role, kind, decoded[kind], len(ids))


def rows(batch: Batch) -> list[list[Segment]]:
    """Return the segments of each row of the batch."""
    samples = batch.sample_of_token.flatten().tolist()
    segments: list[list[Segment]] = [[] for _ in batch.input_ids]
    for start, end in pairwise(batch.cu_seqlens.tolist()):
        sample = None if samples[start] < 0 else batch.sample_ids[samples[start]]
        segments[start // batch.input_ids.shape[1]].append(Segment(sample, end - start))
    return segments


def _token_counts(conversation: Sequence[Piece]) -> Counter[str]:
    """Count tokens by role, with all image tokens under "picture"."""
    counts: Counter[str] = Counter()
    for piece in conversation:
        counts["picture" if piece.kind == "image" else piece.role_name] += piece.num_tokens
    return counts


def _row_values(segments: Sequence[Segment]) -> dict[str, Any]:
    return {
        "segments": segments,
        "share_filled": f"{_share_filled(segments):.1%}",
        "text": _describe_segments(segments),
    }


def _share_filled(segments: Sequence[Segment]) -> float:
    """Return the share of tokens that are of a sample, not padding."""
    num_padding = sum(segment.num_tokens for segment in segments if segment.sample is None)
    return 1 - num_padding / sum(segment.num_tokens for segment in segments)


def _describe_layout(layout: Sequence[Sequence[Segment]]) -> str:
    segments = [segment for row in layout for segment in row]
    num_samples = sum(segment.sample is not None for segment in segments)
    num_tokens = sum(segment.num_tokens for segment in segments)
    return (
        f"{count_of(num_samples, 'sample')} in {count_of(len(layout), 'row')}, {num_tokens} tokens in all, "
        f"{_share_filled(segments):.1%} filled"
    )


def _describe_row(segments: Sequence[Segment]) -> str:
    return f"  row, {_share_filled(segments):.1%} filled: {_describe_segments(segments)}"


def _describe_segments(segments: Sequence[Segment]) -> str:
    return ", ".join(f"{segment.sample or 'padding'} {segment.num_tokens}" for segment in segments)


def _excerpts(conversations: Mapping[str, Sequence[Piece]]) -> Iterator[str]:
    """Yield each title, then one line per piece: long texts are cut, control tokens left out."""
    for title, conversation in conversations.items():
        yield title
        for piece in conversation:
            is_long = len(piece.text) > MAX_LOGGED_CHARACTERS
            text = f"{piece.text[:MAX_LOGGED_CHARACTERS]}..." if is_long else piece.text
            if piece.kind == "image":
                yield f"  image    {piece.num_tokens} tokens"
            elif piece.kind == "text" and text.strip():
                yield f"  {piece.role_name:8} {text.strip()!r}"
