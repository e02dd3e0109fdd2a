"""The fingerprint covers every file that the reader reads, whatever decides which these are."""

import json
import shutil
from unicodedata import normalize

import pytest
from omegaconf import OmegaConf
from PIL import Image

from bbu_train.data import jsonl, voc
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.runs import picture_hashes
from bbu_train.runs.data_fingerprint import fingerprint
from bbu_train.runs.data_record import read_rows

NO_TEACHERS = TeacherDraw(teacher_ratio=0, num_teachers=1, num_validation_teachers=0, seed=1, validation_seed=1)
FORMS = "NFC", "NFD"
NAME = "r\u00e9p\u00e9teur"


def draw(path, grey=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6), grey).save(path, "BMP")  # of one size


def annotate(path, head=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{head}</annotation>")


def write_lines(root, *pictures):
    """Write a line whose student is the last picture, and a validation sample."""
    entries = [{"images": [picture], "objects": []} for picture in pictures]
    line = {"teachers": entries[:-1], "student": entries[-1]} if len(entries) > 1 else entries[0]
    draw(root / "b.png", 9)
    (root / "train.jsonl").write_text(json.dumps(line, ensure_ascii=False))
    (root / "val.txt").write_text(json.dumps({"images": ["b.png"], "objects": []}))


def list_names(root, name):
    (root / "ImageSets/Main").mkdir(parents=True)
    draw(root / "JPEGImages/b.png", 9)
    annotate(root / "Annotations/b.xml")
    (root / "ImageSets/Main/train.txt").write_text(name)
    (root / "ImageSets/Main/val.txt").write_text("b")


def line_in_another_form(root, form="NFD", typed="NFC"):
    write_lines(root, normalize(typed, f"{NAME}/{NAME}.png"))
    draw(root / normalize(form, f"{NAME}/{NAME}.png"))


def absolute_path_in_another_form(root, form="NFD", typed="NFC"):
    write_lines(root, str(root / normalize(typed, f"{NAME}.png")))
    draw(root / normalize(form, f"{NAME}.png"))


def teacher_in_another_form(root, form="NFD", typed="NFC"):
    write_lines(root, normalize(typed, f"{NAME}.png"), "a.png")
    draw(root / normalize(form, f"{NAME}.png"), 3)
    draw(root / "a.png")


def voc_name_in_another_form(root, form="NFD", typed="NFC"):
    list_names(root, normalize(typed, f"{NAME}/{NAME}"))
    annotate(root / normalize(form, f"Annotations/{NAME}/{NAME}.xml"))
    draw(root / normalize(form, f"JPEGImages/{NAME}/{NAME}.png"))


def voc_filename(head):
    """A function that makes a folder where <filename> alone says which picture it is: JPEGImages/a&é.png."""

    def make(root):
        list_names(root, "a")
        annotate(root / "Annotations/a.xml", head)
        draw(root / "JPEGImages/a&\u00e9.png")

    return make


def line_with_blanks_and_brackets(root):
    write_lines(root, "\u6570\u636e (1).png")
    draw(root / "\u6570\u636e (1).png")


def voc_list(line):
    """A function that makes a folder whose list names JPEGImages/a.png in a line of this form."""

    def make(root):
        list_names(root, line)
        annotate(root / "Annotations/a.xml")
        draw(root / "JPEGImages/a.png")

    return make


SPELLINGS = [line_in_another_form, absolute_path_in_another_form, teacher_in_another_form, voc_name_in_another_form]
MADE = {each.__name__: each for each in (*SPELLINGS, line_with_blanks_and_brackets)}
MADE |= {f"list: {line}": voc_list(line) for line in ("a.jpg", "a  1", "JPEGImages/a.png -1", "../Annotations/a.xml")}
MADE |= {
    f"filename: {head}": voc_filename(head)
    for head in (
        "<filename>a&amp;&#233;.png</filename>",
        "<filename><![CDATA[a&\u00e9.png]]></filename>",
        "<!-- <filename>b.png</filename> --><filename>a&amp;\u00e9.png</filename>",
        "<source><filename>b.png</filename></source><filename>a&amp;\u00e9.png</filename>",
        '<Filename type="x">\n a&amp;\u00e9.png</Filename>',
        '<v:filename xmlns:v="x">a&amp;\u00e9.png</v:filename>',
    )
}


def config(root):
    format_name = "voc" if (root / "ImageSets").exists() else "jsonl"
    names = {"train": "train" if format_name == "voc" else "train.jsonl", "validation": "val.txt"}
    data = {"_target_": f"bbu_train.data.{format_name}.load", "root": str(root), **names}
    return OmegaConf.create({"outputs": str(root.parent / "outputs"), "data": data})


def pictures_read(root):
    """Return the paths of all pictures that the reader of the data set takes."""
    if (root / "ImageSets").exists():
        splits = voc.load(root, "train", "val", "error", "train", "error", NO_TEACHERS)
    else:
        splits = jsonl.load(root, "train.jsonl", "val.txt", "error", NO_TEACHERS)
    samples = [*splits.train, *splits.validation]
    return [picture.path for sample in samples for picture in (*(sample.teachers or ()), sample.student)]


def pictures_recorded(root):
    (record,) = (root.parent / "outputs/data/fingerprints").iterdir()
    rows = [row for row in read_rows(record) if isinstance(row, list)]
    return {root / picture[-1] for row in rows for picture in row[3]}


@pytest.mark.parametrize("made", MADE)
def test_every_picture_that_is_read_is_seen_and_kept_in_the_cache(tmp_path, made, monkeypatch):
    root = tmp_path / "data"
    MADE[made](root)
    digests = {fingerprint(config(root))}
    read = pictures_read(root)
    assert set(read) <= pictures_recorded(root)
    monkeypatch.setattr(picture_hashes, "_read", None)
    assert fingerprint(config(root)) in digests  # from the cache
    monkeypatch.undo()
    for number, picture in enumerate(read, 2):
        draw(picture, 100 + number)
        digests.add(fingerprint(config(root)))
        assert len(digests) == number


@pytest.mark.parametrize("typed", FORMS)
@pytest.mark.parametrize("make", [line_in_another_form, teacher_in_another_form, voc_name_in_another_form])
def test_data_is_the_same_on_disks_that_differ_in_the_unicode_form_of_names(tmp_path, make, typed):
    digests = set()
    for form in FORMS:
        make(tmp_path / form / "data", form, typed)
        digests.add(fingerprint(config(tmp_path / form / "data")))
    assert len(digests) == 1


def line_in_a_mixed_form(root):
    write_lines(root, f"{NAME}.png")
    draw(root / "re\u0301p\u00e9teur.png")


FOLDER_ON_DISK = normalize("NFD", NAME)
CHANGES = {  # the file that is added is read from then on
    "the spelling of a line": (line_in_another_form, f"{NAME}/{NAME}.png"),
    "the spelling of a teacher": (teacher_in_another_form, f"{NAME}.png"),
    "the first of several spellings": (line_in_a_mixed_form, normalize("NFD", f"{NAME}.png")),
    "the spelling of a name in VOC": (voc_name_in_another_form, f"JPEGImages/{FOLDER_ON_DISK}/{NAME}.png"),
    "the spelling of a folder in VOC": (voc_name_in_another_form, f"JPEGImages/{NAME}/{NAME}.png"),
    "an earlier ending in a subfolder": (voc_name_in_another_form, f"JPEGImages/{FOLDER_ON_DISK}/{NAME}.jpg"),
    "the annotation's own name": (voc_filename("<filename>a&amp;\u00e9.png</filename>"), "JPEGImages/a.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_new_file_that_is_read_instead_is_seen_although_the_cache_knows_the_other(tmp_path, change):
    root, (make, added) = tmp_path / "data", CHANGES[change]
    make(root)
    before, read = fingerprint(config(root)), pictures_read(root)
    draw(root / added, 77)
    assert root / added in pictures_read(root)
    assert root / added not in read
    assert fingerprint(config(root)) != before


def test_a_new_annotation_that_is_read_instead_is_seen(tmp_path):
    root = tmp_path / "data"
    voc_name_in_another_form(root)
    before = fingerprint(config(root))
    annotate(root / f"Annotations/{FOLDER_ON_DISK}/{NAME}.xml", "<source/>")
    assert fingerprint(config(root)) != before


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a\ud800", "\u8bbe" * 90, "a/" * 3000, ""])
def test_a_picture_with_a_name_that_no_file_can_have_is_for_the_reader_to_refuse(tmp_path, name):
    root = tmp_path / "data"
    write_lines(root, "b.png")
    (root / "train.jsonl").write_text(json.dumps({"images": [name], "objects": []}))
    assert fingerprint(config(root)) is not None
    with pytest.raises(InputError, match=r"train\.jsonl:1"):
        pictures_read(root)


def test_a_slow_disk_gives_the_same_record(tmp_path, monkeypatch):
    root = tmp_path / "data"
    names = [f"{number}.png" for number in range(200)]
    write_lines(root, *names)
    for number, name in enumerate(names):
        draw(root / name, number)
    first = fingerprint(config(root))
    recorded = pictures_recorded(root)
    monkeypatch.setattr(picture_hashes, "SLOW_SECONDS", 0)
    shutil.rmtree(tmp_path / "outputs")
    assert fingerprint(config(root)) == first
    assert pictures_recorded(root) == recorded


@pytest.mark.parametrize("spoil", [lambda path: path.symlink_to("nowhere"), lambda path: path.mkdir()])
def test_an_annotation_that_cannot_be_read_is_for_the_reader_to_report(tmp_path, spoil):
    list_names(tmp_path, "a")
    spoil(tmp_path / "Annotations/a.xml")
    assert fingerprint(config(tmp_path)) is not None


def test_all_missing_files_of_splits_are_listed_together(tmp_path):
    list_names(tmp_path, "a")
    for name in ("train", "val"):
        (tmp_path / f"ImageSets/Main/{name}.txt").unlink()
    with pytest.raises(InputError, match=r"(?s)2 problems.*data\.train=train.*data\.validation=val"):
        fingerprint(config(tmp_path))


@pytest.mark.parametrize("recorded", [[*"abcdefghij"], [*"axbxcxdxex"]], ids=["names", "a repeated teacher"])
@pytest.mark.parametrize("present", [[*"abcdefghij"], [*"bdfhj"], [*"nabcdefghij"], [*"xaxbxcxdxe"]])
def test_pictures_are_found_in_a_record_with_others_removed_added_and_repeated(
    tmp_path, monkeypatch, recorded, present
):
    monkeypatch.setattr(picture_hashes, "WINDOW", 5)
    for name in {*recorded, *present}:
        draw(tmp_path / name)
    outdated = picture_hashes.PictureHashes(iter(())).record(str(tmp_path), recorded)
    read = []
    monkeypatch.setattr(picture_hashes, "_read", lambda path: read.append(path[-1]) or ("hash", picture_hashes.NO_FILE))
    picture_hashes.PictureHashes(iter(outdated)).record(str(tmp_path), present)
    assert {*read} <= {*present} - {*recorded}


@pytest.mark.parametrize("ending", ["bmp", "tif"])
def test_an_edit_at_the_end_of_a_picture_whose_size_is_that_of_its_pixels_is_seen(tmp_path, ending):
    write_lines(tmp_path, f"a.{ending}")
    path = tmp_path / f"a.{ending}"
    Image.new("L", (100, 100)).save(path)
    before = fingerprint(config(tmp_path))
    data = path.read_bytes()
    path.write_bytes(data[:-900] + b"x" + data[-899:])
    assert fingerprint(config(tmp_path)) != before


@pytest.mark.parametrize("target", ["mine.reader.read", "mine.jsonl.load", "bbu_train.data.mine.load"])
def test_a_data_set_whose_files_nobody_knows_is_refused(tmp_path, target):
    cfg = config(tmp_path)
    cfg.data._target_ = target
    with pytest.raises(InputError, match="expected bbu_train.data.<name>.load"):
        fingerprint(cfg)
