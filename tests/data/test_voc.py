from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from bbu_train.data import voc
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.types.samples import Object

NO_TEACHERS = TeacherDraw(teacher_ratio=0, num_teachers=1, num_validation_teachers=0, seed=1, validation_seed=1)
REPOSITORY = Path(__file__).parents[2]
BLOOD_CELLS = REPOSITORY.parent / "shared/data/bccd"
SIZE = "<size><width>8</width><height>6</height><depth>3</depth></size>"

needs_blood_cells = pytest.mark.skipif(not BLOOD_CELLS.is_dir(), reason=f"needs the blood cells in {BLOOD_CELLS}")


def cell(name="cell", box=(1, 2, 3, 4)):
    corners = zip(voc.CORNERS, box, strict=False)
    return f"<object><name>{name}</name><bndbox>{''.join(f'<{c}>{v}</{c}>' for c, v in corners)}</bndbox></object>"


def annotate(root, name, *objects, head=SIZE):
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{head}{''.join(objects)}</annotation>")


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


def load(root, train="train", bad_boxes="error"):
    return voc.load(root, train, "val", bad_boxes, NO_TEACHERS)


def message(root, **changes):
    with pytest.raises(InputError) as error:
        load(root, **changes)
    return str(error.value)


def test_an_annotation_becomes_a_sample_and_its_coordinates_are_not_converted(root):
    (sample,) = load(root).train
    assert (sample.id, sample.teachers) == ("Annotations/a.xml", None)
    assert sample.student.path == root / "JPEGImages/a.png"
    assert sample.student.objects == (Object((1.0, 2.0, 3.0, 4.0), "cell"),)


def test_the_filename_in_the_annotation_comes_first(root):
    Image.new("RGB", (8, 6)).save(root / "JPEGImages/other.bmp")
    annotate(root, "a", head="<filename>other.bmp</filename>" + SIZE)
    assert load(root).train[0].student.path.name == "other.bmp"


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png"])
def test_the_annotations_own_name_finds_the_picture_where_its_filename_does_not(root, suffix):
    (root / "JPEGImages/a.png").rename(root / f"JPEGImages/a{suffix}")
    annotate(root, "a", head="<filename>gone.jpg</filename>")
    assert load(root).train[0].student.path.name == f"a{suffix}"


def test_parts_of_an_object_are_not_objects(root):
    whole = cell().replace("</object>", "<part><name>head</name><bndbox/></part></object>")
    annotate(root, "a", whole)
    assert load(root).train[0].student.objects == (Object((1.0, 2.0, 3.0, 4.0), "cell"),)


def test_a_picture_in_both_splits_is_read_and_counted_once(root):
    (root / "ImageSets/Main/train.txt").write_text("b\na\n")
    annotate(root, "b", cell(), cell(box=(1, 2, 1, 4)))
    splits = load(root, bad_boxes="drop")
    assert [sample.id for sample in splits.train] == ["Annotations/b.xml", "Annotations/a.xml"]
    assert splits.validation[0] is splits.train[0]
    assert splits.num_dropped_boxes == 1


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 2, 1, 4), "zero-area box [1, 2, 1, 4]"),
        ((3, 2, 1, 4), "inverted box [3, 2, 1, 4]"),
        ((1, 2, 9, 4), "box [1, 2, 9, 4] outside its picture of 8 x 6 pixels"),
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
    splits = load(root, bad_boxes="drop")
    assert (len(splits.train[0].student.objects), splits.num_dropped_boxes) == (1, 1)


def test_an_object_without_a_name_is_an_error(root):
    annotate(root, "a", cell(name=" "))
    assert "Annotations/a.xml object 1: no name" in message(root, bad_boxes="drop")


def test_an_object_without_a_box_is_an_error(root):
    annotate(root, "a", "<object><name>cell</name></object>")
    assert "object 1 (cell): box that is not four numbers (there is no bndbox)" in message(root)


def test_a_size_that_differs_from_the_pictures_own_is_an_error(root):
    annotate(root, "a", head="<size><width>6</width><height>8</height></size>")
    assert "Annotations/a.xml: its size 6 x 8 differs from that of a.png, upright 8 x 6" in message(root)


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
    assert "b.jpg: No such file" in text


def test_a_missing_split_lists_those_that_exist(root):
    expected = "ImageSets/Main/trian.txt (data.train=trian): no such file; there are: train, val"
    assert expected in message(root, train="trian")


def test_an_empty_split_is_an_error(root):
    (root / "ImageSets/Main/train.txt").write_text("\n")
    assert "ImageSets/Main/train.txt (data.train=train): empty file" in message(root)


def test_a_folder_of_another_kind_names_what_it_lacks(tmp_path):
    text = message(tmp_path)
    assert all(f"it has no folder {name}" in text for name in voc.FOLDERS)


def test_a_missing_root_names_the_key_to_set():
    assert "data.root is not set" in message(None)


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
    assert (len(splits.train), len(splits.validation), splits.num_dropped_boxes) == (205, 87, 2)
