import os
from pathlib import Path
from unicodedata import normalize

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from bbu_train.data import voc
from bbu_train.data.teachers import TeacherDraw
from bbu_train.data.voc_annotation import CORNERS
from bbu_train.errors import InputError
from bbu_train.types.samples import Object

NO_TEACHERS = TeacherDraw(teacher_ratio=0, num_teachers=1, num_validation_teachers=0, seed=1, validation_seed=1)
REPOSITORY = Path(__file__).parents[2]
BLOOD_CELLS = REPOSITORY.parent / "shared/data/bccd"
SIZE = "<size><width>8</width><height>6</height><depth>3</depth></size>"

needs_blood_cells = pytest.mark.skipif(not BLOOD_CELLS.is_dir(), reason=f"needs the blood cells in {BLOOD_CELLS}")


def cell(name="cell", box=(1, 2, 3, 4), further=""):
    corners = zip(CORNERS, box, strict=False)
    box = "".join(f"<{c}>{v}</{c}>" for c, v in corners)
    return f"<object><name>{name}</name>{further}<bndbox>{box}</bndbox></object>"


def annotate(root, name, *objects, head=SIZE):
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{head}{''.join(objects)}</annotation>")


def draw(root, name):
    Image.new("RGB", (8, 6)).save(root / "JPEGImages" / name, format="PNG")


def list_names(root, *lines):
    (root / "ImageSets/Main/train.txt").write_bytes(os.fsencode("\n".join(lines)))


@pytest.fixture
def root(tmp_path):
    """A folder with a training picture `a` and a validation picture `b` of 8 x 6 pixels, a cell on each."""
    for folder in voc.FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    for name, split in (("a", "train"), ("b", "val")):
        Image.new("RGB", (8, 6)).save(tmp_path / f"JPEGImages/{name}.png")
        annotate(tmp_path, name, cell())
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n\n")
    return tmp_path


def load(root, train="train", bad_boxes="error", difficult="train", parts="error"):
    return voc.load(root, train, "val", bad_boxes, difficult, parts, NO_TEACHERS)


def message(root, **changes):
    with pytest.raises(InputError) as error:
        load(root, **changes)
    return str(error.value)


def test_an_annotation_becomes_a_sample_and_its_coordinates_are_not_converted(root):
    (sample,) = load(root).train
    assert (sample.id, sample.teachers) == ("Annotations/a.xml", None)
    assert sample.student.path == root / "JPEGImages/a.png"
    assert sample.student.objects == (Object((1.0, 2.0, 3.0, 4.0), "cell"),)


@pytest.mark.parametrize("filename", ["", "a.jpg", "A.PNG", "a", "gone.jpg", "b.png", "C:\\images\\b.png"])
@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".jpeg", ".Png", ".tif", ".WEBP"])
def test_the_picture_with_the_annotations_own_name_is_its_picture_whatever_its_filename_says(
    root, filename, ending, caplog
):
    (root / "JPEGImages/a.png").rename(root / f"JPEGImages/a{ending}")
    annotate(root, "a", head=f"<filename>{filename}</filename>{SIZE}")
    assert load(root).train[0].student.path.name == f"a{ending}"
    is_said = "1 annotation: <filename> differs from the annotation's own name" in caplog.text
    assert is_said == (filename not in ("", "a.jpg", "A.PNG", "a"))


def test_differing_filenames_are_one_warning_with_their_number_and_the_first(root, caplog):
    for name in "abc":
        draw(root, f"{name}.png")
        annotate(root, name, head="<filename>old.png</filename>" + SIZE)
    list_names(root, "c", "b", "a")
    load(root)
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert message.startswith(f"{root}: 3 annotations: ")
    assert "First: Annotations/c.xml: <filename> 'old.png', read c.png" in message


@pytest.mark.parametrize("filename", ["other.bmp", "other", "other.JPG", "/data/JPEGImages/other.png"])
def test_without_a_picture_of_the_own_name_the_filename_is_taken(root, filename):
    (root / "JPEGImages/a.png").rename(root / "JPEGImages/other.bmp")
    annotate(root, "a", head=f"<filename>{filename}</filename>" + SIZE)
    assert load(root).train[0].student.path.name == "other.bmp"


def test_a_filename_that_names_the_picture_of_another_annotation_is_an_error(root):
    (root / "JPEGImages/a.png").unlink()
    annotate(root, "a", head="<filename>b.png</filename>" + SIZE)
    expected = "Annotations/a.xml: no picture in JPEGImages is called a, and b.png is that of b.xml"
    assert expected in message(root)


def test_of_two_pictures_with_the_own_name_the_filename_decides_and_else_it_is_said(root, caplog):
    draw(root, "a.jpg")
    annotate(root, "a", head="<filename>a.png</filename>" + SIZE)
    assert load(root).train[0].student.path.name == "a.png"
    assert not caplog.messages
    annotate(root, "a")
    assert load(root).train[0].student.path.name == "a.jpg"
    assert "several pictures have the annotation's name" in caplog.text


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("annotation", ["NFC", "NFD"])
@pytest.mark.parametrize("picture", ["NFC", "NFD"])
def test_names_agree_in_either_unicode_form(root, listed, annotation, picture, caplog):
    draw(root, normalize(picture, "r\u00e9p\u00e9teur.JPG"))
    annotate(
        root, normalize(annotation, "r\u00e9p\u00e9teur"), head="<filename>r\u00e9p\u00e9teur.jpg</filename>" + SIZE
    )
    list_names(root, normalize(listed, "r\u00e9p\u00e9teur"))
    (sample,) = load(root).train
    assert sample.student.path.is_file()
    assert not caplog.messages


@pytest.mark.parametrize("name", ["设备".encode("gbk"), "é".encode("latin-1"), ("长" * 82).encode()])
def test_any_bytes_and_any_length_of_file_names_are_read_and_their_ids_can_be_written(root, name):
    text = os.fsdecode(name)
    draw(root, f"{text}.jpg")
    annotate(root, text, cell())
    list_names(root, text)
    (sample,) = load(root).train
    assert os.fsencode(sample.student.path.name) == name + b".jpg"
    assert sample.id.encode()


LINES = [
    "a",
    "a  1",
    "a -1",
    "a\t0",
    "a.jpg",
    "a.PNG",
    "a.xml",
    "a.png -1",
    "JPEGImages/a.png",
    "/x/y/a.jpg 1",
    r"C:\x\a",
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_a_split_may_have_folders_an_ending_and_a_second_column(root, line):
    list_names(root, line, "b  1")
    assert [sample.id for sample in load(root).train] == ["Annotations/a.xml", "Annotations/b.xml"]


@pytest.mark.parametrize(
    "line", ["{}/Annotations/a.xml", "{}/JPEGImages/a.png", "../Annotations/a.xml", "./a", "x/../a"]
)
def test_folders_outside_of_annotations_are_left_out_of_a_name_even_if_they_exist(root, line):
    (root / "Annotations/x").mkdir()
    list_names(root, line.format(root))
    assert [sample.id for sample in load(root).train] == ["Annotations/a.xml"]


@pytest.mark.parametrize("name", ["a 1", "a.jpg"])
def test_a_name_that_looks_like_two_columns_or_has_an_ending_is_taken_as_it_is(root, name):
    draw(root, f"{name}.png")
    annotate(root, name)
    list_names(root, name)
    assert load(root).train[0].student.path.name == f"{name}.png"


CODECS = [
    "gb2312",
    "GBK",
    "gb18030",
    "Big5",
    "euc-kr",
    "Shift_JIS",
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "cp1252",
]


@pytest.mark.parametrize("codec", CODECS)
def test_annotations_are_read_in_the_encoding_that_they_declare(root, codec):
    word = {"euc-kr": "한국", "Shift_JIS": "ラベル", "cp1252": "café"}.get(codec, "中文")
    text = f'<?xml version="1.0" encoding="{codec.removesuffix("-sig")}"?><annotation>{SIZE}{cell(word)}</annotation>'
    (root / "Annotations/a.xml").write_bytes(text.encode(codec))
    list_names(root, "a")
    (root / "ImageSets/Main/train.txt").write_text("a", encoding="utf-16" if codec == "utf-16" else "utf-8-sig")
    assert load(root).train[0].student.objects[0].description == word


def test_characters_beyond_gb2312_and_a_false_utf16_are_read_as_they_are_meant(root):
    for codec, declared in (("gbk", "gb2312"), ("utf-8", "utf-16")):
        text = f'<?xml version="1.0" encoding="{declared}"?><annotation>{SIZE}{cell("镕")}</annotation>'
        (root / "Annotations/a.xml").write_bytes(text.encode(codec))
        assert load(root).train[0].student.objects[0].description == "镕"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("<annotation>电缆</annotation>".encode("gbk"), "Annotations/a.xml: not utf-8 at byte 13"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "Annotations/a.xml: unknown encoding: klingon"),
        (b'<?xml version="1.0" encoding="hex"?><annotation/>', "Annotations/a.xml: 'hex' is not a text encoding"),
        (b"", "Annotations/a.xml:1: malformed XML"),
    ],
)
def test_a_wrong_or_unknown_encoding_is_named(root, data, expected):
    (root / "Annotations/a.xml").write_bytes(data)
    assert expected in message(root)


OBJECT = cell()
READ = {
    "a namespace on all": f'<annotation xmlns="http://x/voc">{OBJECT}</annotation>',
    "a namespace on objects": "<annotation>" + OBJECT.replace("<object>", '<object xmlns="urn:x">') + "</annotation>",
    "a prefix": '<annotation xmlns:v="urn:x">' + OBJECT.replace("<", "<v:").replace("<v:/", "</v:") + "</annotation>",
    "capitals": f"<annotation>{OBJECT.replace('object', 'Object').replace('bndbox', 'BndBox')}</annotation>",
    "capitals in all": f"<Annotation>{OBJECT.upper().replace('CELL', 'cell')}</Annotation>",
    "a wrapper": f"<annotation><objects>{OBJECT}</objects></annotation>",
    "two wrappers": f"<annotation><layer><Objects>{OBJECT}</Objects></layer></annotation>",
}


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_objects_are_read_wherever_they_are_and_in_whatever_case_and_namespace(root, text):
    (root / "Annotations/a.xml").write_text(text)
    assert load(root).train[0].student.objects == (Object((1.0, 2.0, 3.0, 4.0), "cell"),)


REFUSED = {
    OBJECT.replace("object>", "item>"): "Annotations/a.xml: <item> holds a box but is not read",
    f"<objects>{OBJECT.replace('<object>', '').replace('</object>', '')}</objects>": "<objects> holds a box but is not",
    OBJECT.replace("</object>", OBJECT + "</object>"): "object 1: holds another <object>",
    OBJECT.replace("<bndbox>", "<region><bndbox>").replace("</bndbox>", "</bndbox></region>"): "<region> holds a box",
    "<object><name>cell</name><box><xmin>1</xmin></box></object>": "<box> holds a box but is not read",
    cell(further="<bndbox/>"): "object 1 (cell): more than one <bndbox>",
    cell(further="<name>b</name>"): "object 1 (cell): more than one <name>",
    cell(further="<difficult>maybe</difficult>"): "object 1 (cell): <difficult> is 'maybe', expected 0 or 1",
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.items(), ids=REFUSED.values())
def test_elements_that_look_like_objects_but_are_not_read_are_refused(root, text, expected):
    annotate(root, "a", text)
    assert expected in message(root, bad_boxes="drop")


def test_parts_of_an_object_are_an_error_left_out_or_objects(root):
    part = cell("head", (2, 3, 3, 4)).replace("object>", "part>")
    annotate(root, "a", cell(further=part))
    assert "object 1 (cell): holds 1 <part> with a box: data.parts=drop" in message(root)
    dropped = load(root, parts="drop")
    assert dropped.train[0].student.objects == (Object((1.0, 2.0, 3.0, 4.0), "cell"),)
    assert dropped.reader_counts["train"].changed_objects == {"dropped: part of an object": 1}
    descriptions = [each.description for each in load(root, parts="train").train[0].student.objects]
    assert descriptions == ["cell", "head"]


def test_difficult_objects_are_trained_or_left_out_and_never_scored(root):
    easy = [cell(further=f"<difficult>{value}</difficult>") for value in ("0", " ", "false")]
    annotate(root, "a", *easy, cell("hard", further="<Difficult> 1 </Difficult>"))
    hard = Object((1.0, 2.0, 3.0, 4.0), "hard", is_difficult=True)
    trained, dropped = load(root).train[0].student, load(root, difficult="drop")
    assert [each.is_difficult for each in trained.objects] == [False, False, False, True]
    assert (trained.objects[3], trained.ignored) == (hard, ())
    assert (dropped.train[0].student.objects, dropped.train[0].student.ignored) == (trained.objects[:3], (hard,))
    assert dropped.reader_counts["train"].changed_objects == {"dropped: difficult": 1}


@pytest.mark.parametrize("key", ["bad_boxes", "difficult", "parts"])
def test_an_unknown_word_names_the_choices(root, key):
    assert f"data.{key}=some: expected one of " in message(root, **{key: "some"})


def test_a_picture_in_both_splits_is_read_and_counted_once(root):
    (root / "ImageSets/Main/train.txt").write_text("b\na\n")
    annotate(root, "b", cell(), cell(box=(1, 2, 1, 4)))
    splits = load(root, bad_boxes="drop")
    assert [sample.id for sample in splits.train] == ["Annotations/b.xml", "Annotations/a.xml"]
    assert splits.validation[0] is splits.train[0]
    assert splits.reader_counts["train"].changed_objects == {"dropped: zero area": 1}


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 2, 1, 4), "zero-area box [1, 2, 1, 4]"),
        ((3, 2, 1, 4), "inverted box [3, 2, 1, 4]"),
        ((9, 2, 11, 4), "box [9, 2, 11, 4] outside its picture of 8 x 6 pixels"),
        (("nan", 2, 9, 4), "box that is not finite [NaN, 2, 9, 4]"),
        (("one", 2, 3, 4), "box that is not four numbers [one, 2, 3, 4]"),
        ((1, 2, 3), "box that is not four numbers [1, 2, 3, ?]"),
    ],
)
def test_a_bad_box_stops_or_is_dropped(root, box, expected):
    annotate(root, "a", cell(), cell("RBC", box))
    text = message(root)
    assert f"Annotations/a.xml object 2 (RBC): {expected}" in text
    assert "data.bad_boxes=drop" in text
    for bad_boxes in ("drop", "clip"):
        splits = load(root, bad_boxes=bad_boxes)
        assert (len(splits.train[0].student.objects), sum(splits.reader_counts["train"].changed_objects.values())) == (
            1,
            1,
        )


def test_a_box_that_is_slightly_outside_is_cut_on_request(root):
    annotate(root, "a", cell(box=(-0.0003, 1, 8.08, 6)))
    splits = load(root, bad_boxes="clip")
    assert [each.box_xyxy for each in splits.train[0].student.objects] == [(0, 1, 8, 6)]
    assert splits.reader_counts["train"].changed_objects == {"clipped: outside the picture": 1}


def test_an_object_without_a_name_is_an_error(root):
    annotate(root, "a", cell(name=" "))
    assert "Annotations/a.xml object 1: no <name>" in message(root, bad_boxes="drop")


def test_an_object_without_a_box_is_an_error(root):
    annotate(root, "a", "<object><name>cell</name></object>")
    assert "object 1 (cell): box that is not four numbers (there is no bndbox)" in message(root)


CORNER = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>{}</bndbox>"


@pytest.mark.parametrize(
    ("tag", "head", "further"),
    [
        ("size", SIZE + SIZE, ""),
        ("filename", "<filename>a.png</filename><filename>b.png</filename>", ""),
        ("width", SIZE.replace("<width>", "<width>8</width><width>"), ""),
        ("name", "", "<name>again</name>"),
        ("ymax", "", None),
    ],
)
def test_an_element_of_which_only_one_is_used_is_refused_if_it_is_there_twice(root, tag, head, further):
    box = CORNER.format("<ymax>5</ymax>")
    annotate(
        root, "a", f"<object><name>x</name>{box}</object>" if further is None else cell(further=further), head=head
    )
    assert f"more than one <{tag}>" in message(root)


@pytest.mark.parametrize(
    "element",
    [
        "<item><name>screw</name><box><x1>1</x1><y1>2</y1><x2>3</x2><y2>4</y2></box></item>",
        '<box label="screw" xtl="1" ytl="2" xbr="3" ybr="4"/>',
        "<obj><label>s</label><bbox><left>1</left><top>2</top><right>3</right><bottom>4</bottom></bbox></obj>",
    ],
)
def test_elements_that_look_like_objects_and_are_not_read_are_a_warning(root, element, caplog):
    annotate(root, "a", cell(), element, element)
    assert len(load(root).train[0].student.objects) == 1
    assert "1 annotation: elements that look like an <object> are not read. First: Annotations/a.xml <" in caplog.text


def test_data_about_the_picture_does_not_look_like_an_object(root, caplog):
    head = "<source><database>x</database><image>flickr</image><flickrid>1</flickrid></source><depth>3</depth>"
    annotate(root, "a", cell(further="<pose>Left</pose><truncated>0</truncated>"), head=SIZE + head)
    load(root)
    assert not caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_blanks_before_the_xml_declaration_are_left_out(root, encoding):
    text = f'\n <?xml version="1.0" encoding="{encoding}"?><annotation>{SIZE}{cell("螺丝")}</annotation>'
    (root / "Annotations/a.xml").write_bytes(text.encode(encoding))
    assert load(root).train[0].student.objects[0].description == "螺丝"


def test_a_split_may_be_called_by_a_number(root):
    (root / "ImageSets/Main/2012.txt").write_text("a")
    assert [sample.id for sample in load(root, train=2012).train] == ["Annotations/a.xml"]


def test_a_size_that_differs_from_the_pictures_own_is_an_error(root):
    annotate(root, "a", head="<size><width>6</width><height>8</height></size>")
    assert "Annotations/a.xml: its size 6 x 8 differs from that of a.png, upright 8 x 6" in message(root)
    annotate(root, "a", head="<size><width>0</width><height>8</height></size>")
    assert "Annotations/a.xml: its size 0 x 8 differs" in message(root)


@pytest.mark.parametrize("side", ["0", "", " 0 ", "-1", "0.0", "None", "nan", "Unspecified", "N/A", "?"])
def test_a_size_of_nothing_is_unknown(root, side):
    annotate(root, "a", cell(), head=f"<size><width>{side}</width><height>{side}</height></size>")
    assert len(load(root).train[0].student.objects) == 1
    annotate(root, "a", cell(), head="<size/>")
    assert len(load(root).train[0].student.objects) == 1


def test_malformed_xml_is_named_by_line(root):
    (root / "Annotations/a.xml").write_text("<annotation>\n<object>\n</annotation>")
    assert "Annotations/a.xml:3: malformed XML" in message(root)


def test_another_kind_of_xml_is_an_error(root):
    (root / "Annotations/a.xml").write_text("<svg/>")
    assert "Annotations/a.xml: expected <annotation>, found <svg>" in message(root)


def test_a_missing_annotation_or_picture_is_an_error(root):
    (root / "Annotations/a.xml").unlink()
    (root / "JPEGImages/b.png").unlink()
    text = message(root)
    assert "Annotations/a.xml: No such file" in text
    assert "Annotations/b.xml: " in text
    assert "no picture in JPEGImages is called b and ends in .jpg, " in text


def test_a_missing_split_lists_those_that_exist(root):
    text = message(root, train="trian")
    assert (
        "data.train=trian: " in text and "/ImageSets/Main/trian.txt cannot be read (No such file or directory)" in text
    )
    assert "There are: train.txt, val.txt." in text


def test_an_empty_split_is_an_error(root):
    (root / "ImageSets/Main/train.txt").write_text("\n")
    assert "ImageSets/Main/train.txt (data.train=train): empty file" in message(root)


def test_a_folder_of_another_kind_names_what_it_lacks(tmp_path):
    text = message(tmp_path)
    assert all(f"it has no folder {name}" in text for name in voc.FOLDERS)


def test_a_missing_root_names_the_key_to_set():
    assert "data.root is not set" in message(None)


def test_elements_that_are_not_used_are_counted_by_their_path(root):
    """Of an unused element only the outer one counts. Objects are read, so looked into, wherever they are."""
    further = (
        "<pose>Left</pose><attributes><attribute><name>wet</name></attribute></attributes><part><name>x</name></part>"
    )
    head = f"<folder>x</folder><source><database>y</database></source>{SIZE}"
    annotate(root, "a", cell(further=further), f"<group><id>1</id>{cell(further=further)}</group>", head=head)
    assert load(root).reader_counts["train"].unused_elements == {
        "object/pose": 1,
        "object/attributes": 1,
        "object/part": 1,
        "folder": 1,
        "source": 1,
        "size/depth": 1,
        "group/id": 1,
        "group/object/pose": 1,
        "group/object/attributes": 1,
        "group/object/part": 1,
    }
    assert load(root).reader_counts["validation"].unused_elements == {"size/depth": 1}


@pytest.mark.parametrize(("parts", "changed"), [("drop", {"dropped: part of an object": 1}), ("train", {})])
def test_parts_with_a_box_are_trained_or_dropped_but_never_unused(root, parts, changed):
    part = "<part><name>lid</name><pose>Up</pose><bndbox>"
    part += "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>"
    annotate(root, "a", cell(further=part), head="")
    counts = load(root, parts=parts).reader_counts["train"]
    assert (counts.changed_objects, counts.unused_elements) == (changed, {"object/part/pose": 1})


def test_an_annotation_in_both_splits_is_counted_in_both_and_reported_once(root, caplog):
    annotate(root, "b", cell(box=(1, 2, 1, 4)))
    list_names(root, "a", "b")
    counts = load(root, bad_boxes="drop").reader_counts
    assert [each.changed_objects for each in counts.values()] == [{"dropped: zero area": 1}] * 2
    assert "dropped 1 object: zero area" in caplog.text


@needs_blood_cells
def test_the_two_bad_boxes_of_the_blood_cells_are_reported_together():
    text = message(BLOOD_CELLS)
    assert "2 problems" in text
    assert "Annotations/BloodImage_00338.xml object 13 (RBC): zero-area box [504, 337, 504, 337]" in text
    assert "Annotations/BloodImage_00343.xml object 4 (RBC): zero-area box [181, 329, 181, 329]" in text


@needs_blood_cells
def test_the_blood_cells_load_with_their_bad_boxes_dropped():
    config = OmegaConf.load(REPOSITORY / "conf/data/voc.yaml")
    config.root, config.bad_boxes = str(BLOOD_CELLS), "drop"
    splits = instantiate(OmegaConf.create({"seed": 3, "data": config}), _convert_="all")["data"]
    assert (len(splits.train), len(splits.validation)) == (205, 87)
    assert splits.reader_counts["train"].changed_objects == {"dropped: zero area": 1}
