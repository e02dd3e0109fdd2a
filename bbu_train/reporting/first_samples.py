"""What a model is given, to be read before it is trained for hours: samples.html, and in short in train.log.

The first training and the first validation conversation as their tokens say it, and how the first step lies in rows.
"""

import html
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from bbu_train.conversation.text import Text
from bbu_train.reporting import html_page
from bbu_train.runtime import distributed
from bbu_train.training import loader
from bbu_train.types.batch import Batch, Encoded
from bbu_train.types.samples import Draw, Role

log = logging.getLogger(__name__)
NAME = "samples.html"
MOST_LOGGED = 300  # characters of a piece of text in train.log
WORDS = {Role.NONE: "prompt", Role.TEACHER: "teacher", Role.STUDENT: "student"}
STYLE = """
pre { background: #f9fafb; padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 6px;
  font: 13px/1.6 ui-monospace, monospace; }
.prompt { color: #374151; } .teacher { background: #dbeafe; } .student { background: #fde68a; }
.control { color: #9ca3af; } .image { background: #d1fae5; border-radius: 4px; padding: 0 .4em; }
.row { display: flex; height: 1.9rem; margin-top: .6rem; border: 1px solid #9ca3af; }
.row div { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; min-width: 0; font-size: 12px;
  padding: .3rem .3rem 0; background: #bfdbfe; } .row div:nth-child(even) { background: #ddd6fe; }
.row div.padding { background: repeating-linear-gradient(45deg, #f3f4f6 0 6px, #d1d5db 6px 12px); }
"""
LEGEND = """<p class="note"><span class="prompt">system and prompt</span> <span class="teacher">teacher's answer</span>
<span class="student">student's answer</span> <span class="image">picture</span></p>"""


class Piece(NamedTuple):
    """Tokens of one role in a row, and what they say; `kind` is text, control or image."""

    role: Role
    kind: str
    text: str
    num_tokens: int


class Segment(NamedTuple):
    """A sample in a row of a batch, or padding: `sample` is None."""

    sample: str | None
    num_tokens: int


def write_page(
    folder: Path, source: loader.SampleSource, validation: loader.SampleSource, collator, plan, num_micro_batches: int
) -> Path:
    """Write samples.html into the run's folder. The rows are those of this rank."""
    step = next(plan.starting_at(0))
    ranks = distributed.rank(), distributed.world_size()
    text = source.builder.text
    first = {
        "First training conversation": source.encode(step[0][0]),
        "First validation conversation": validation.encode(Draw(0, validation.admissible(0)[0])),
    }
    said = {f"{name}: {encoded.sample_id}": list(pieces(encoded, text)) for name, encoded in first.items()}
    batches = next(loader.batches(source, collator, [step], num_micro_batches, *ranks, 0))
    laid = [row for batch in batches for row in rows(batch)]
    title = f"First step on rank {ranks[0]} of {ranks[1]}: {_shares(laid)}"
    log.debug("%s", "\n".join([*_in_short(said), title, *map(_row_in_short, laid)]))
    body = [f"<h1>What {html.escape(folder.name)} begins with</h1>", LEGEND]
    body += [*map(_conversation, said, said.values()), f"<h2>{html.escape(title)}</h2>", *map(_row, laid)]
    path = folder / NAME
    path.write_text(html_page.page(f"{folder.name}: first samples", STYLE, "\n".join(body)), encoding="utf-8")
    return path


def pieces(encoded: Encoded, text: Text) -> Iterator[Piece]:
    """The conversation in pieces of one role and kind. No text can pose as a control token: kinds are told by ids."""

    def kind(token: int) -> str:
        return "image" if token == text.image else "control" if text.control(token) is not None else "text"

    tokens = zip(encoded.input_ids.tolist(), map(Role, encoded.roles.tolist()), strict=True)
    for (role, its_kind), group in groupby(tokens, key=lambda each: (each[1], kind(each[0]))):
        ids = [token for token, _ in group]
        words = {"image": "", "control": "".join(text.control(token) or "" for token in ids), "text": text.read(ids)}
        yield Piece(role, its_kind, words[its_kind], len(ids))


def rows(batch: Batch) -> list[list[Segment]]:
    """How the samples of a batch lie in its rows."""
    owners = batch.sample_of_token.flatten().tolist()
    laid: list[list[Segment]] = [[] for _ in batch.input_ids]
    for start, end in pairwise(batch.cu_seqlens.tolist()):
        sample = None if owners[start] < 0 else batch.sample_ids[owners[start]]
        laid[start // batch.input_ids.shape[1]].append(Segment(sample, end - start))
    return laid


def _filled(segments: Sequence[Segment]) -> float:
    """The share of slots that hold a token and not padding."""
    num_padding = sum(each.num_tokens for each in segments if each.sample is None)
    return 1 - num_padding / sum(each.num_tokens for each in segments)


def _shares(laid: Sequence[Sequence[Segment]]) -> str:
    everything = [segment for row in laid for segment in row]
    num_samples = sum(each.sample is not None for each in everything)
    num_slots = sum(each.num_tokens for each in everything)
    return f"{num_samples} samples in {len(laid)} rows of {num_slots} slots, {_filled(everything):.1%} filled"


def _listed(segments: Sequence[Segment]) -> str:
    return ", ".join(f"{each.sample or 'padding'} {each.num_tokens}" for each in segments)


def _in_short(said: dict[str, list[Piece]]) -> Iterator[str]:
    """A line a piece of text, longer ones cut; of control tokens nothing."""
    for title, its in said.items():
        yield title
        for piece in its:
            words = piece.text if len(piece.text) <= MOST_LOGGED else f"{piece.text[:MOST_LOGGED]}..."
            if piece.kind == "image":
                yield f"  image    {piece.num_tokens} tokens"
            elif piece.kind == "text" and words.strip():
                yield f"  {WORDS[piece.role]:8} {words.strip()!r}"


def _row_in_short(segments: Sequence[Segment]) -> str:
    return f"  row, {_filled(segments):.1%} filled: {_listed(segments)}"


def _conversation(title: str, its: Sequence[Piece]) -> str:
    counts: Counter[str] = Counter()
    for piece in its:
        counts["picture" if piece.kind == "image" else WORDS[piece.role]] += piece.num_tokens
    note = ", ".join(f"{count} {word}" for word, count in counts.items())
    marked = "".join(map(_marked, its))
    return f'<h2>{html.escape(title)}</h2><p class="note">tokens: {note}</p><pre>{marked}</pre>'


def _marked(piece: Piece) -> str:
    if piece.kind == "image":
        return f'<span class="image">{piece.num_tokens} image tokens</span>'
    classes = WORDS[piece.role] + (" control" if piece.kind == "control" else "")
    return f'<span class="{classes}">{html.escape(piece.text)}</span>'


def _row(segments: Sequence[Segment]) -> str:
    """Each segment as wide as it is long, and all of them in words below."""
    bars = "".join(
        f'<div style="flex: {each.num_tokens} 1 0" class="{"sample" if each.sample else "padding"}">'
        f"{html.escape(each.sample or '')}</div>"
        for each in segments
    )
    return f'<div class="row">{bars}</div><p class="note">{_filled(segments):.1%}: {html.escape(_listed(segments))}</p>'
