"""The data that a run reads is a part of its identity, wherever it lies."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from bbu_train.errors import InputError
from bbu_train.runs import folder as run_folder
from bbu_train.runs import resume
from bbu_train.runs.data_fingerprint import RECORD, fingerprint, keep_record

NAMES = "a", "b", "c", "d"
FORMATS = "jsonl", "voc"
ONE_FORMAT = pytest.mark.parametrize("kind", ["jsonl"])


def draw(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (200, 200), grey).save(path.with_suffix(".bmp"), "BMP")  # above 16 KiB, of one size
    path.with_suffix(".bmp").rename(path)


def line(name: str, x: int = 0) -> str:
    return json.dumps({"images": [f"pictures/{name}.png"], "objects": [{"bbox_2d": [x, 0, 9, 9], "desc": "bbu"}]})


def xml(name: str, x: int = 0) -> str:
    box = f"<bndbox><xmin>{x}</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    return f"<annotation><filename>{name}.png</filename><object><name>bbu</name>{box}</object></annotation>"


def make_jsonl(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    for name in names:
        draw(root / "pictures" / f"{name}.png", ord(name))
    (root / "train.jsonl").write_text("".join(f"{line(name)}\n" for name in NAMES[:3]))
    (root / "validation.jsonl").write_text(line(NAMES[3]))
    return root


def make_voc(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in names:
        draw(root / "JPEGImages" / f"{name}.png", ord(name))
        (root / "Annotations" / f"{name}.xml").write_text(xml(name))
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
    (root / "ImageSets/Main/val.txt").write_text("d\n")
    return root


MAKE = {"jsonl": make_jsonl, "voc": make_voc}


@pytest.fixture(params=FORMATS)
def kind(request):
    return request.param


@pytest.fixture
def root(kind, tmp_path):
    return MAKE[kind](tmp_path / "data")


@pytest.fixture
def of(kind, config, tmp_path):
    """A function from a root to the config of a run on it."""

    def make(root: Path, **changes):
        cfg = config(f"data={kind}").copy()
        OmegaConf.update(cfg, "data.root", str(root))
        cfg.outputs, cfg.sweep, cfg.run = str(tmp_path / "outputs"), "s", "r"
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        return cfg

    return make


@pytest.fixture
def start(of):
    """A function from a root to the run that a command on it means, as `resolve_run` gives it."""

    def resolve(root: Path, **changes):
        given = {"data.root": root, "sweep": "s", "run": "r"} | changes
        words = [f"{key}={value}" for key, value in given.items() if value]
        return resume.resolve_run(of(root, **changes), "default", words, in_sweep=False)

    return resolve


def begin(cfg) -> Path:
    """Make the folder of a run, without its environment.json, which takes long."""
    folder = Path(cfg.folder)
    folder.mkdir(parents=True)
    keep_record(cfg, folder)
    (folder / run_folder.CONFIG).write_text(run_folder.as_yaml(cfg))
    return folder


OPENED: list[list[str]] = []  # a hook stays for the life of the process; without a list it does nothing
sys.addaudithook(lambda event, words: OPENED[-1].append(str(words[0])) if OPENED and event == "open" else None)


@pytest.fixture
def opened():
    """A function that calls another one and returns the files in a folder that it opens, by whatever call."""

    def call(function, folder: Path) -> list[str]:
        OPENED.append([])
        try:
            function()
        finally:
            paths = OPENED.pop()
        return [path for path in paths if Path(path).is_relative_to(folder)]

    return call


def stamps(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


def replace(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


# ---- what it is ----


def test_the_same_data_at_another_path_is_the_same_whenever_and_in_whatever_order_it_was_written(
    kind, root, of, tmp_path, monkeypatch
):
    again = MAKE[kind](tmp_path / "else where", NAMES[::-1])
    os.utime(again / "JPEGImages/a.png" if kind == "voc" else again / "train.jsonl", (1, 1))
    assert fingerprint(of(again)) == fingerprint(of(root))
    monkeypatch.chdir(tmp_path)
    assert fingerprint(of(Path("data"))) == fingerprint(of(root))


EDITS = {
    "a picture of the same size": lambda pictures, _: draw(pictures / "b.png", 77),
    "a byte near the end of a picture": lambda pictures, _: (pictures / "b.png").write_bytes(
        (pictures / "b.png").read_bytes()[:-3] + b"b!b"
    ),
    "the size of a picture": lambda pictures, _: (pictures / "b.png").write_bytes(b"b" * 17),
    "two pictures that change names": lambda pictures, _: [
        (pictures / old).rename(pictures / new) for old, new in (("a.png", "x"), ("b.png", "a.png"), ("x", "b.png"))
    ],
    "an annotation": lambda _, annotations: [replace(path, b"bbu", b"bbv") for path in annotations],
    "a picture that goes": lambda pictures, _: (pictures / "d.png").unlink(),
}
EDITS_OF_LISTS = {
    "a sample that goes": lambda text: text.splitlines(keepends=True)[1:],
    "the order of the samples": lambda text: text.splitlines(keepends=True)[::-1],
    "a sample that is there twice": lambda text: [text, text],
    "another line end": lambda text: text.replace("\n", "\r\n"),
    "a byte order mark": lambda text: "\ufeff" + text,
}


@pytest.mark.parametrize("edit", [*EDITS, *EDITS_OF_LISTS])
def test_every_edit_makes_other_data_with_the_cache_and_without(kind, root, of, edit, tmp_path):
    before = fingerprint(of(root))
    if edit in EDITS:
        pictures = root / ("JPEGImages" if kind == "voc" else "pictures")
        annotations = [root / ("Annotations/b.xml" if kind == "voc" else "train.jsonl")]
        EDITS[edit](pictures, annotations)
    else:
        path = root / ("ImageSets/Main/train.txt" if kind == "voc" else "train.jsonl")
        path.write_bytes("".join(EDITS_OF_LISTS[edit](path.read_text())).encode())
    after = fingerprint(of(root))
    assert after != before
    assert after == fingerprint(of(root, outputs=str(tmp_path / "no cache")))


def test_what_no_sample_names_is_no_part_of_it(kind, root, of):
    before = fingerprint(of(root))
    (root / "notes.txt").write_text("x")
    draw(root / ("JPEGImages" if kind == "voc" else "pictures") / "other.png", 5)
    assert fingerprint(of(root)) == before


# ---- how it is found ----


def test_the_second_time_no_annotation_and_no_picture_is_read_and_nothing_is_written(root, of, opened):
    first = fingerprint(of(root))
    before, again = stamps(root.parent), []
    paths = opened(lambda: again.append(fingerprint(of(root))), root)
    assert again == [first]
    assert {Path(path).suffix for path in paths} <= {".jsonl", ".txt"}  # whether a split's file can be opened
    assert stamps(root.parent) == before


def test_nothing_is_written_into_a_data_folder(root, start):
    before = stamps(root)
    cfg = start(root)
    run_folder.create(cfg.folder, cfg, {})
    assert stamps(root) == before


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-20], lambda data: data[:40] + b"\0\1" + data[42:]]
)
def test_a_damaged_cache_is_ignored(root, of, damage, tmp_path):
    first = fingerprint(of(root))
    (cached,) = (tmp_path / "outputs/data/fingerprints").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    assert fingerprint(of(root)) == first
    assert cached.read_bytes() == whole


def test_one_new_picture_of_many_is_the_only_one_that_is_read_again(of, kind, root, opened):
    fingerprint(of(root))
    changed = root / ("JPEGImages" if kind == "voc" else "pictures") / "b.png"
    draw(changed, 5)
    paths = opened(lambda: fingerprint(of(root)), root)
    assert [path for path in paths if path.endswith(".png")] == [str(changed)]


def test_it_needs_neither_torch_nor_numpy():
    code = "import bbu_train.runs.resume, bbu_train.data.files, sys; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("wrong", ["root", "split"])
def test_data_that_cannot_be_read_is_refused_before_anything_is_written(root, start, wrong, tmp_path):
    for path in root.rglob("*.txt" if (root / "ImageSets").exists() else "*.jsonl"):
        path.unlink()
    with pytest.raises(InputError, match="no such folder" if wrong == "root" else r"data\.train=.* cannot be read"):
        start(tmp_path / "nowhere" if wrong == "root" else root)
    assert not (tmp_path / "outputs").exists()


# ---- other data is another run ----


def test_other_data_is_another_run_and_the_same_elsewhere_is_the_same(kind, root, start, tmp_path):
    one = start(root).about
    assert start(shutil.copytree(root, tmp_path / "copy")).about == one
    draw(root / ("JPEGImages" if kind == "voc" else "pictures") / "a.png", 1)
    assert start(root).about.identity != one.identity


def test_a_changed_data_set_is_refused_on_resume_with_what_changed(kind, root, start):
    cfg = start(root)
    begin(cfg)
    assert start(root).run == "r"
    if kind == "jsonl":
        (root / "train.jsonl").write_text("\n".join([line("a"), line("c", x=1), line("d")]))
        expected = "train: 1 removed: line 2 (pictures/b.png)", "train: 1 added: line 3 (pictures/d.png)"
        expected = (*expected, "train: 1 changed: line 2 (pictures/c.png)", "pictures: 1 removed: pictures/b.png")
    else:
        (root / "ImageSets/Main/train.txt").write_text("a\nc\nd\n")
        (root / "Annotations/c.xml").write_text(xml("c", x=1))
        expected = "train: 1 removed: Annotations/b.xml", "train: 1 added: Annotations/d.xml"
        expected = (*expected, "train: 2 changed: ImageSets/Main/train.txt, Annotations/c.xml")
    draw(next(root.rglob("a.png")), 5)
    for command in ({}, {"resume": cfg.folder, "sweep": None, "run": None}):
        with pytest.raises(InputError) as refused:
            start(root, **command)
        for text in (*expected, "pictures: 1 changed: ", "a.png"):
            assert text in str(refused.value)


@ONE_FORMAT
def test_an_order_that_changed_is_said(root, kind, start):
    cfg = start(root)
    begin(cfg)
    path = root / ("ImageSets/Main/train.txt" if kind == "voc" else "train.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    with pytest.raises(InputError, match="train"):
        start(root)


@ONE_FORMAT
def test_a_moved_data_set_resumes(root, start, tmp_path):
    cfg = start(root)
    begin(cfg)
    root.rename(tmp_path / "moved")
    moved = start(tmp_path / "moved", resume=cfg.folder, sweep=None, run=None)
    assert (moved.run, moved.data.root) == ("r", str(tmp_path / "moved"))


@ONE_FORMAT
def test_a_run_without_a_record_is_refused_as_well(root, start):
    cfg = start(root)
    begin(cfg)
    (Path(cfg.folder) / RECORD).write_bytes(b"x")
    draw(next(root.rglob("a.png")), 5)
    with pytest.raises(InputError, match="unknown what changed"):
        start(root)


@ONE_FORMAT
def test_data_that_changes_while_a_run_starts_is_refused_before_the_run_begins(root, start):
    cfg = start(root)
    draw(next(root.rglob("a.png")), 5)
    with pytest.raises(InputError, match="changed since this command was given"):
        run_folder.create(cfg.folder, cfg, {})
    assert not (Path(cfg.folder) / run_folder.CONFIG).exists()


@ONE_FORMAT
def test_a_config_that_was_edited_since_the_run_began_is_said_on_resume(root, start, caplog):
    cfg = start(root)
    path = begin(cfg) / run_folder.CONFIG
    again = {"resume": cfg.folder, "sweep": None, "run": None}
    assert start(root, **again).run == "r"
    assert not caplog.messages
    replace(path, b"\nlog_every: 1\n", b"\nlog_every: 7\n")  # changes no result
    start(root, **again)
    assert not caplog.messages
    replace(path, b"\nseed: 17\n", b"\nseed: 18\n")
    start(root, **again)
    assert f"{path} was edited, or written by other code: it notes the identity {cfg.about.identity}" in caplog.text


@ONE_FORMAT
def test_a_run_of_before_fingerprints_goes_on_with_a_warning(root, start, caplog):
    cfg = start(root)
    begin(cfg)
    path = Path(cfg.folder) / run_folder.CONFIG
    path.write_text("".join(text for text in path.read_text().splitlines(True) if not text.startswith("  data: ")))
    assert start(root).run == "r"
    assert "older than fingerprints" in caplog.text


def test_a_root_for_images_that_are_drawn_is_refused_and_theirs_follows_outputs(config, tmp_path):
    for data, key in (
        ("synthetic", "data.root"),
        ("synthetic_parts", "data.root"),
        ("synthetic_full", "data.root"),
        ("overfit", "data.source.root"),
    ):
        cfg = config(f"data={data}").copy()
        cfg.outputs = str(tmp_path / "outputs")
        assert fingerprint(cfg) is None
        assert OmegaConf.select(cfg, key).startswith(str(tmp_path / "outputs"))
        OmegaConf.update(cfg, key, str(tmp_path))
        with pytest.raises(InputError, match=rf"{key}=.*=jsonl or data.*=voc"):
            resume.resolve_run(cfg, "default", [f"{key}={tmp_path}"], in_sweep=False)
    assert [*tmp_path.iterdir()] == []


def test_the_data_of_an_overfit_run_is_that_of_its_source(config, tmp_path):
    cfg = config("data=overfit", "data@data.source=jsonl").copy()
    cfg.data.source.root, cfg.outputs = str(make_jsonl(tmp_path / "data")), str(tmp_path / "outputs")
    first = fingerprint(cfg)
    draw(tmp_path / "data/pictures/a.png", 5)
    assert fingerprint(cfg) not in (first, None)
