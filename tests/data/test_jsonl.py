import json
import logging
import shutil
from pathlib import Path
from unicodedata import normalize

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import ExifTags, Image

from bbu_train.data import files, jsonl
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.types.samples import Object

NO_TEACHERS = TeacherDraw(teacher_ratio=0, num_teachers=1, num_validation_teachers=0, seed=1, validation_seed=1)
SCREW = {"bbox_2d": [1, 2, 3, 4], "desc": "screw/m4"}
GOOD = {"images": ["a.png"], "objects": [SCREW]}


@pytest.fixture
def root(tmp_path):
    """A folder with two different pictures of 8 x 6 pixels and a good validation.jsonl."""
    for name, color in (("a.png", "black"), ("b.png", "red")):
        Image.new("RGB", (8, 6), color).save(tmp_path / name)
    write(tmp_path, GOOD, name="validation.jsonl")
    return tmp_path


def write(root, *lines, name="train.jsonl"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / name).write_text(text, encoding="utf-8")


def with_box(*box):
    return {"images": ["a.png"], "objects": [SCREW, {"bbox_2d": list(box), "desc": "screw"}]}


def load(root, bad_boxes="error"):
    return jsonl.load(root, "train.jsonl", "validation.jsonl", bad_boxes, NO_TEACHERS)


def message(root, bad_boxes="error"):
    with pytest.raises(InputError) as error:
        load(root, bad_boxes)
    return str(error.value)


def test_a_flat_line_becomes_a_sample_whose_teachers_are_drawn(root):
    write(root, GOOD | {"id": 7, "site": "north"})
    (sample,) = load(root).train
    assert (sample.id, sample.teachers) == ("train.jsonl:1", None)
    assert (sample.student.path, sample.student.width, sample.student.height) == (root / "a.png", 8, 6)
    assert sample.student.objects == (Object((1.0, 2.0, 3.0, 4.0), "screw/m4"),)


def test_absolute_paths_need_no_root(root):
    """The record of the data names the pictures as the reader reads them."""
    train, validation = str(root / "train.jsonl"), str(root / "validation.jsonl")
    absolute = {"images": [str(root / "a.png")], "objects": [SCREW]}
    write(root, absolute)
    write(root, absolute, {"images": ["b.png"], "objects": []}, name="validation.jsonl")
    with pytest.raises(InputError) as error:
        jsonl.load(None, train, validation, "error", NO_TEACHERS)
    assert 'validation.jsonl:2: the path "b.png" is relative: give the folder where it begins, data.root=/path' in str(
        error.value
    )
    write(root, absolute, name="validation.jsonl")
    assert jsonl.load(None, train, validation, "error", NO_TEACHERS).train[0].student.path == root / "a.png"
    source = files.jsonl(root=None, train=train, validation=validation)
    assert [each.pictures for each in source.splits["train"]()] == [(str(root / "a.png"),)]
    with pytest.raises(InputError, match="data.root is not set"):
        jsonl.load(None, train, "validation.jsonl", "error", NO_TEACHERS)


def test_further_keys_of_flat_lines_are_counted_as_unused(root):
    write(root, GOOD | {"id": 7, "site": "north"}, GOOD | {"id": 8})
    counts = load(root).reader_counts
    assert [each.unused_elements for each in counts.values()] == [{"id": 2, "site": 1}, {}]


def test_the_score_of_a_predicted_object_is_not_used_and_any_other_key_is_an_error(root):
    write(root, {"images": ["a.png"], "objects": [SCREW | {"score": 0.9}, SCREW]})
    splits = load(root)
    assert splits.train[0].student.objects == (Object((1.0, 2.0, 3.0, 4.0), "screw/m4"),) * 2
    assert splits.reader_counts["train"].unused_elements == {"objects/score": 1}
    write(root, {"images": ["a.png"], "objects": [SCREW | {"scores": 0.9}]})
    assert 'unknown key "scores"' in message(root)


@pytest.mark.parametrize("key", ["Objects", "object", "image", "teacher", "Students", "IMAGES "])
def test_a_further_key_that_is_nearly_a_known_one_is_an_error(root, key):
    write(root, GOOD | {key: []})
    assert f'train.jsonl:1: unknown key "{key}", which is nearly "' in message(root)


def test_byte_order_marks_of_files_that_were_joined_are_left_out(root):
    line = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    (root / "train.jsonl").write_bytes(b"\n".join([line, line]))
    assert [sample.id for sample in load(root).train] == ["train.jsonl:1", "train.jsonl:2"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_one_error(root, encoding):
    (root / "train.jsonl").write_bytes("\n".join([json.dumps(GOOD)] * 3).encode(encoding))
    assert "1 problem" in message(root) and "it is in UTF-16; save it as UTF-8" in message(root)


@pytest.mark.parametrize("text", [json.dumps([GOOD]), json.dumps([GOOD], indent=1), json.dumps(GOOD, indent=1)])
def test_one_json_document_is_one_error(root, text):
    (root / "train.jsonl").write_text(text)
    assert "1 problem" in message(root) and "expected one sample {...} per line" in message(root)


@pytest.mark.parametrize("description", ["/", " / ", "\u00ad", "\u200d", "\x00", "\u3164", "\u2028"])
def test_a_description_without_a_visible_character_is_blank(root, description):
    write(root, {"images": ["a.png"], "objects": [SCREW | {"desc": description}]})
    assert 'train.jsonl:1 object 1: "desc" must be text that is not blank' in message(root)


def test_a_line_with_teachers_fixes_them_in_their_order(root):
    teachers = [{"images": [name], "objects": []} for name in ("b.png", "c.png")]
    Image.new("RGB", (5, 5)).save(root / "c.png")
    write(root, {"teachers": teachers, "student": GOOD}, {"teachers": [], "student": GOOD})
    first, second = load(root).train
    assert [teacher.path.name for teacher in first.teachers] == ["b.png", "c.png"]
    assert second.teachers == ()


def test_the_students_of_all_training_lines_are_the_pool(root):
    write(root, {"teachers": [], "student": GOOD}, GOOD | {"images": ["b.png"]})
    assert [picture.path.name for picture in load(root).pool] == ["a.png", "b.png"]


def test_a_picture_without_objects_is_annotated_as_empty(root):
    write(root, {"images": ["a.png"], "objects": []})
    assert load(root).train[0].student.objects == ()


@pytest.mark.parametrize("name", ["re\u0301pe\u0301teur.png", "r\u00e9p\u00e9teur.png"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_picture_is_found_in_either_unicode_form_of_its_path(root, name, form):
    (root / name).parent.joinpath("e\u0301").mkdir()
    Image.new("RGB", (8, 6)).save(root / "e\u0301" / name)
    write(root, GOOD | {"images": [normalize(form, f"e\u0301/{name}")]})
    assert load(root).train[0].student.path == root / "e\u0301" / name


def test_absolute_picture_paths_are_not_changed(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.png"
    Image.new("RGB", (9, 9)).save(elsewhere)
    write(root, {"images": [str(elsewhere)], "objects": []})
    assert load(root).train[0].student.path == elsewhere


def test_boxes_are_checked_against_the_upright_size(root):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 6)).save(root / "a.png", exif=exif)
    write(root, with_box(0, 0, 6, 8))
    assert (load(root).train[0].student.width, load(root).train[0].student.height) == (6, 8)


def test_a_box_that_touches_the_edges_is_inside(root):
    write(root, with_box(0, 0, 8, 6))
    assert len(load(root).train[0].student.objects) == 2


def test_blank_lines_and_a_byte_order_mark_are_skipped_but_lines_keep_their_numbers(root):
    write(root, "\ufeff", "   ", GOOD, "")
    assert [sample.id for sample in load(root).train] == ["train.jsonl:3"]


def test_a_byte_order_mark_before_the_first_sample_is_accepted(root):
    write(root, "\ufeff" + json.dumps(GOOD))
    assert len(load(root).train) == 1


def test_order_is_kept_over_many_lines(root):
    write(root, *[GOOD] * 1100)  # more than are in flight at once
    assert [sample.id for sample in load(root).train] == [f"train.jsonl:{number}" for number in range(1, 1101)]


BAD_BOXES = {
    "zero-area box [2, 1, 2, 4]": (2, 1, 2, 4),
    "inverted box [3, 1, 2, 4]": (3, 1, 2, 4),
    "box [0, 0, 8.5, 6] outside its picture of 8 x 6 pixels": (0, 0, 8.5, 6),
    "box [-1, 0, 3, 3] outside its picture": (-1, 0, 3, 3),
    "box that is not finite [NaN, 0, 3, 3]": (float("nan"), 0, 3, 3),
    "box that is not finite [0, 0, Infinity, 3]": (0, 0, 10**400, 3),
    "box that is not four numbers [1, 2, 3]": (1, 2, 3),
    'box that is not four numbers [1, 2, 3, "4"]': (1, 2, 3, "4"),
    "box that is not four numbers [1, 2, 3, true]": (1, 2, 3, True),
}


@pytest.mark.parametrize(("expected", "box"), BAD_BOXES.items())
def test_a_bad_box_stops_and_is_named_by_line_and_object(root, expected, box):
    write(root, GOOD, with_box(*box))
    text = message(root)
    assert f"train.jsonl:2 object 2: {expected}" in text
    assert "data.bad_boxes=drop" in text


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES)
def test_bad_boxes_are_dropped_counted_and_logged_on_request(root, box, caplog):
    write(root, with_box(*box), with_box(*box))
    with caplog.at_level(logging.WARNING):
        splits = load(root, bad_boxes="drop")
    assert [sample.student.objects for sample in splits.train] == [(Object((1.0, 2.0, 3.0, 4.0), "screw/m4"),)] * 2
    ((reason, number),) = splits.reader_counts["train"].changed_objects.items()
    assert reason.startswith("dropped: ")
    assert number == 2
    (message,) = caplog.messages
    assert message.startswith(f"{root}: dropped 2 objects: ")
    assert "First: train.jsonl:1 object 2: " in message


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((-0.08, 0, 3, 3), (0, 0, 3, 3)),
        ((5, 4, 8.0003, 6), (5, 4, 8, 6)),
        ((-9, -9, 99, 99), (0, 0, 8, 6)),
        ((8, 1, 9, 4), None),
        ((-3, 1, 0, 4), None),
        ((1, 20, 2, 30), None),
        *((box, None) for box in ((2, 1, 2, 4), (3, 1, 2, 4), (9, 1, -1, 4), (float("nan"), 0, 3, 3), (1, 2, 3))),
    ],
)
def test_a_box_that_is_partly_outside_is_cut_on_request_and_any_other_bad_box_left_out(root, box, inside, caplog):
    write(root, with_box(*box))
    splits = load(root, bad_boxes="clip")
    expected = [Object((1.0, 2.0, 3.0, 4.0), "screw/m4"), *([Object(inside, "screw")] if inside else [])]
    assert splits.train[0].student.objects == tuple(expected)
    assert list(splits.reader_counts["train"].changed_objects.values()) == [1]
    assert all(
        key.startswith("clipped" if inside else "dropped") for key in splits.reader_counts["train"].changed_objects
    )
    assert "train.jsonl:1 object 2: " in caplog.text


def test_other_problems_still_stop_when_bad_boxes_are_dropped(root):
    write(root, with_box(2, 1, 2, 4), GOOD | {"images": ["missing.png"]})
    text = message(root, bad_boxes="drop")
    assert "1 problem." in text
    assert "train.jsonl:2: " in text


def with_object(**changes):
    return GOOD | {"objects": [SCREW | changes]}


OBJECT = "train.jsonl:1 object 1: "
BAD_LINES = [
    ('{"images": ["a.png"] "objects": []}', "train.jsonl:1: malformed JSON at column 22"),
    ("[" * 100_000, "train.jsonl:1: malformed JSON"),
    ("[1, 2]", "train.jsonl:1: expected an object {...}, found [1, 2]"),
    (
        {"images": ["a.png"], "object": []},
        'train.jsonl:1: missing "objects", expected "images", "objects"; its keys are "images", "object"',
    ),
    ({"images": ["a.png", "b.png"], "objects": []}, '"images" must be a list of one path, found ["a.png", "b.png"]'),
    ({"images": "a.png", "objects": []}, '"images" must be a list of one path, found "a.png"'),
    ({"images": [" "], "objects": []}, '"images" must be a list of one path'),
    ({"images": ["a.png"], "objects": None}, '"objects" must be a list, empty if there are none, found null'),
    ({"images": ["a.png"], "objects": ["screw"]}, OBJECT + "expected an object"),
    (with_object(label="screw"), OBJECT + 'unknown key "label", expected "bbox_2d", "desc"'),
    ({"images": ["a.png"], "objects": [{"desc": "screw"}]}, OBJECT + 'missing "bbox_2d"'),
    (with_object(desc=""), OBJECT + '"desc" must be text that is not blank, found ""'),
    (with_object(desc=" \t\u3000\ufeff"), OBJECT + '"desc" must be text that is not blank'),
    (with_object(desc=3), OBJECT + '"desc" must be text that is not blank, found 3'),
    (with_object(desc="\ud800"), OBJECT + '"desc" holds half a surrogate pair'),
    ({"teachers": []}, 'train.jsonl:1: missing "student"'),
    ({"teachers": {}, "student": GOOD}, '"teachers" must be a list, found {}'),
    ({"teachers": [], "student": GOOD, "images": []}, 'unknown key "images"'),
    ({"teachers": [], "student": GOOD | {"id": 1}}, 'train.jsonl:1 student: unknown key "id"'),
    (
        {"teachers": [with_object(bbox_2d=[1, 1, 1, 2]) | {"images": ["b.png"]}], "student": GOOD},
        "train.jsonl:1 teacher 1 object 1: zero-area box",
    ),
    ('{"images": ["a.png"], "objects": [], "objects": []}', '"objects" more than once in one object {...}'),
    (
        '{"images": ["a.png"], "objects": [{"bbox_2d": [1, 2, 3, 4], "desc": "a", "desc": "b"}]}',
        '"desc" more than once',
    ),
    ('{"images": ["a.png"], "objects": [], "id": [{"x": {"y": 1, "y": 1}}]}', '"y" more than once'),
    (GOOD | {"images": ["missing.png"]}, "missing.png: No such file"),
    (GOOD | {"images": ["train.jsonl"]}, "train.jsonl: not a picture"),
    (GOOD | {"images": ["."]}, "Is a directory"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_LINES, ids=[expected for _, expected in BAD_LINES])
def test_a_bad_line_says_what_is_wrong_with_it(root, line, expected):
    write(root, line)
    text = message(root)
    assert "1 problem." in text
    assert expected in text
    assert "train.jsonl:1" in text


@pytest.mark.parametrize("kind", ["same", "detour", "link", "copy"])
def test_fixed_teachers_differ_from_the_student_and_from_each_other_as_drawn_ones_do(root, kind):
    name = {"same": "a.png", "detour": "./x/../a.png"}.get(kind, "x.png")
    (root / "x").mkdir()
    if kind == "link":
        (root / name).symlink_to(root / "a.png")
    if kind == "copy":
        shutil.copy(root / "a.png", root / name)
    (root / "copy of b.png").write_bytes((root / "b.png").read_bytes())
    names = name, "b.png", "copy of b.png"
    write(root, {"teachers": [GOOD | {"images": [each]} for each in names], "student": GOOD})
    text = message(root)
    assert "2 problems" in text
    assert "train.jsonl:1 teacher 1: has the student's own picture, which gives the answer away" in text
    assert "train.jsonl:1 teacher 3: has the picture of teacher 2: the student and all teachers" in text


def test_a_truncated_picture_is_named_by_the_line_that_needs_it(root):
    Image.effect_noise((40, 30), 90).save(root / "c.jpg")
    (root / "c.jpg").write_bytes((root / "c.jpg").read_bytes()[:-100])
    write(root, GOOD, {"images": ["c.jpg"], "objects": []})
    assert f"train.jsonl:2: {root / 'c.jpg'}: truncated" in message(root)


def test_bytes_that_are_not_utf8_are_named_by_line(root):
    (root / "train.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + '{"desc": "电缆"}'.encode("gbk"))
    assert "train.jsonl:2: not UTF-8 at byte 11" in message(root)


def test_all_problems_of_both_files_are_listed_in_their_order(root):
    write(root, with_box(2, 1, 2, 4), "{", with_object(desc=""), GOOD | {"images": ["missing.png"], "objects": [{}]})
    write(root, "", with_box(3, 1, 2, 4), name="validation.jsonl")
    lines = message(root).splitlines()
    expected = ["train.jsonl:1 ", "train.jsonl:2:", "train.jsonl:3 ", "train.jsonl:4 object 1", "train.jsonl:4:"]
    assert "6 problems" in lines[0]
    assert all(line.strip().startswith(start) for line, start in zip(lines[1:], expected, strict=False))
    assert "validation.jsonl:2 object 2: inverted box" in lines[6]


def test_bad_boxes_of_a_missing_picture_are_listed_too(root):
    write(root, with_box(2, 1, 2, 4) | {"images": ["missing.png"]})
    assert "2 problems" in message(root)


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_an_error(root, content):
    write(root, content)
    assert "train.jsonl: empty file" in message(root)


def test_missing_files_are_named_with_their_keys(tmp_path):
    text = message(tmp_path)
    assert "data.train=train.jsonl: " in text
    assert "data.validation=validation.jsonl: " in text
    assert f"data.root={tmp_path}" in text


def test_a_missing_root_names_the_key_to_set(tmp_path):
    for root, expected in ((None, "data.root is not set"), (tmp_path / "nowhere", "nowhere: no such folder")):
        assert expected in message(root)
        assert "data.root=/path" in message(root)


def test_an_unknown_value_of_bad_boxes_is_an_error(root):
    assert "data.bad_boxes=ignore: expected one of error, drop, clip" in message(root, bad_boxes="ignore")


def test_the_yaml_needs_only_a_root(root):
    config = OmegaConf.load(Path(__file__).parents[2] / "conf/data/jsonl.yaml")
    write(root, GOOD, GOOD, GOOD)
    config.root = str(root)
    splits = instantiate(OmegaConf.create({"seed": 3, "data": config}), _convert_="all")["data"]
    assert (len(splits.train), len(splits.validation), splits.teachers.seed) == (3, 1, 3)


def test_a_folder_in_another_format_is_named(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    assert "The folder looks like one for data=voc" in message(tmp_path)
