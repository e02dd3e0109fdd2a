import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from bbu_train.collator.packed import PackedCollator
from bbu_train.collator.standard import PaddedCollator
from bbu_train.conversation.pixels import read_pixels
from bbu_train.images.colors import ClassColors
from bbu_train.reporting import first_samples, shown_pictures
from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.training import loader, planning
from bbu_train.types.samples import Object, Role, Sample, View

EVIL = "</pre><script>alert(1)</script> & <|im_end|>\"' &amp; 螺丝/错误"

BLANK = Image.new("RGB", (8, 8))


class Page(HTMLParser):
    """What a browser would show: the opened tags, the texts inside of each class, and the text of each <pre>."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.texts, self.conversations, self.is_in_pre = [], [], {}, [], False
        self.captions, self.pictures = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.captions += [value for name, value in attributes if name == "data-caption"]
        if tag == "img":
            self.pictures.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(dict(attributes).get("class"))
        if tag == "pre":
            self.conversations.append("")
            self.is_in_pre = True

    def handle_endtag(self, tag):
        self.open.pop()
        self.is_in_pre = self.is_in_pre and tag != "pre"

    def handle_data(self, text):
        if self.is_in_pre:
            self.conversations[-1] += text
        self.texts.setdefault(self.open[-1] if self.open else None, []).append(text)


@pytest.fixture
def sources(builder, make_picture):
    teacher = make_picture("teacher", 84, 56, ((1, 2, 30, 40), "bbu/zte"))
    evil = make_picture("evil", 84, 56, ((5, 6, 40, 50), EVIL))
    samples = [Sample("train.jsonl:1 <b>", evil, (teacher,)), Sample("train.jsonl:2", teacher, ())]
    settings = (
        *(loader.unchanged, lambda sample, _: sample.teachers),
        *(builder, lambda tokens, _: tokens, 8192, "error", 17),
    )
    validation = [Sample("validation.jsonl:1", evil, ())]
    return loader.SampleSource(samples, *settings), loader.SampleSource(validation, *settings)


@pytest.fixture
def write_page(sources, preprocessing, tmp_path, caplog):
    """A function from a collator's name to the page and the log."""

    def write(name):
        collator = {"packed": PackedCollator, "standard": PaddedCollator}[name](
            preprocessing.picture_format, 8192, "error"
        )
        plan = planning.StepPlan(FixedSamples(2, seed=1), sources[0], 1)
        caplog.set_level("DEBUG", logger="bbu_train.reporting.first_samples")
        folder = tmp_path / "<script>alert(2)\"'"
        folder.mkdir()
        paths = first_samples.write(folder, *sources, collator, plan, 1)
        assert [path.name for path in paths] == ["samples.html", "train_samples.jpg"]
        page = Page()
        page.feed(paths[0].read_text(encoding="utf-8"))
        return page, caplog.text

    return write


def test_the_page_escapes_every_text_and_shows_it_in_the_color_of_its_role(write_page):
    page, _ = write_page("packed")
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "First samples of <script>alert(2)\"'" in page.texts[None]
    assert EVIL.replace('"', '\\"') in page.texts["student"][-1]
    assert any("train.jsonl:1 <b>" in text for text in page.texts["note"])
    assert set(page.texts["student control"]) == {"<|im_end|>"}
    assert any("You are an inspector" in text for text in page.texts["prompt"])


def test_the_page_shows_exactly_the_pieces_of_a_conversation(write_page, builder, sources):
    page, _ = write_page("packed")
    pieces = first_samples.pieces(sources[1].encode(planning.SampleVisit(0, 0)), builder.tokenizer)
    texts = (f"{piece.num_tokens} image tokens" if piece.kind == "image" else piece.text for piece in pieces)
    assert len(page.conversations) == 2
    assert page.conversations[1] == "".join(texts)


def test_the_page_shows_each_picture_of_the_conversations_where_its_tokens_are(write_page):
    page, _ = write_page("packed")
    assert page.captions == [
        "teacher 1, 1 object: train.jsonl:1 <b>, 84 x 56 pixels",
        "student, 1 object: train.jsonl:1 <b>, 84 x 56 pixels",
        "student, 1 object: validation.jsonl:1, 84 x 56 pixels",
    ]
    header, _, data = page.pictures[0].partition(",")
    assert header == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (560, 373)


def test_the_panels_show_the_patches_and_the_targets_that_the_model_is_given(builder, make_picture):
    view = View(112, 84, (0, 0, 84, 84), True, False, 1.5, 1, 1)
    rack = make_picture("rack", 112, 84, ((10, 10, 60, 40), "bbu/huawei"))
    student = replace(rack, width=84, view=view, objects=(Object((24.0, 10.0, 74.0, 40.0), "bbu/huawei"),))
    bare, unknown = make_picture("bare", 56, 56), replace(rack, objects=None)
    shown = []
    for sample, teachers, with_answer in (
        (Sample("a", student, ()), (bare, rack), True),
        (Sample("b", bare, ()), (), True),
        (Sample("c", unknown, ()), (), False),
    ):
        encoded = builder.encode(builder.converse(sample, teachers, with_answer))
        shown += shown_pictures.panels_of(encoded, builder.picture_format, builder.tokenizer, ClassColors(["bbu"]))
    assert [panel.caption for panel in shown] == [
        "teacher 1, no objects: a, 56 x 56 pixels",
        "teacher 2, 1 object: a, 112 x 84 pixels",
        "student, 1 object: a, 84 x 84 pixels",
        "student, no objects: b, 56 x 56 pixels",
        "student, not annotated: c, 112 x 84 pixels",
    ]
    assert shown[2].image.tobytes() == read_pixels(student, 84, 84).tobytes()
    assert [panel.border for panel in shown[:3]] == [shown_pictures.TEACHER] * 2 + [shown_pictures.STUDENT]
    for panel, box in zip(shown[1:3], ((10, 10, 60, 40), (24, 10, 74, 40)), strict=True):
        [mark] = panel.marks
        assert mark.box_xyxy == pytest.approx(box, abs=1e-3)
        assert (mark.text, mark.class_name, mark.is_dashed) == ("bbu/huawei", "bbu", True)


def test_the_sheet_has_the_first_pictures_of_a_step_and_says_what_it_leaves_out(sources, tmp_path, monkeypatch):
    titles, counts = [], []
    monkeypatch.setattr(
        shown_pictures, "sheet", lambda panels, _, title: titles.append(title) or counts.append(len(panels)) or BLANK
    )
    visits = [planning.SampleVisit(0, index % 2) for index in range(30)]
    for number in (3, 30):
        first_samples._write_sheet(tmp_path / "sheet.jpg", sources[0], visits[:number], ClassColors(()))
    assert counts == [5, 16]
    assert titles[0].endswith("all samples, 5 pictures")
    assert titles[1].endswith("the first 11 of 30 samples, 16 pictures")


def test_pieces_are_the_whole_conversation_with_pictures_as_counts(builder, sources):
    encoded = sources[0].encode(planning.SampleVisit(0, 0))
    pieces = list(first_samples.pieces(encoded, builder.tokenizer))
    assert sum(piece.num_tokens for piece in pieces) == len(encoded.input_ids)
    assert [piece.num_tokens for piece in pieces if piece.kind == "image"] == [6, 6]
    text = "".join(piece.text for piece in pieces)
    beginning = f"<|im_start|>system\n{builder.system}<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>"
    assert text.startswith(beginning)
    assert text.endswith("<|im_end|>\n")
    teacher, student = ("".join(p.text for p in pieces if p.role is role) for role in (Role.TEACHER, Role.STUDENT))
    assert teacher == '[{"bbox_2d": [1, 2, 30, 40], "label": "bbu/zte"}]<|im_end|>'
    assert EVIL.replace('"', '\\"') in student


@pytest.mark.parametrize("collator", ["packed", "standard"])
def test_the_layout_names_every_sample_its_length_and_the_padding(sources, collate, collator):
    source, _ = sources
    encoded = [source.encode(planning.SampleVisit(0, index)) for index in (0, 1)]
    long, short = (len(each.input_ids) for each in encoded)
    expected = [("train.jsonl:1 <b>", long), ("train.jsonl:2", short)]
    if collator == "packed":
        assert first_samples.rows(collate(collator, encoded)) == [expected]
    else:
        assert first_samples.rows(collate(collator, encoded)) == [[expected[0]], [expected[1], (None, long - short)]]


def test_the_log_has_an_excerpt(write_page):
    _, logged = write_page("standard")
    assert "First validation conversation: validation.jsonl:1" in logged
    assert "image    6 tokens" in logged
    assert "2 samples in 2 rows, " in logged
    assert "padding" in logged
    assert "<span" not in logged
