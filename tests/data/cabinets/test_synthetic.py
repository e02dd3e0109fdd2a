import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from PIL import Image

from bbu_train.data.cabinets.cabinet import draw
from bbu_train.data.cabinets.synthetic import load
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError

TEACHERS = TeacherDraw(teacher_ratio=0.7, num_teachers=1, num_validation_teachers=1, seed=17, validation_seed=17)
VALUES = {
    "scene": "cabinet",
    "num_train": 4,
    "num_validation": 2,
    "width": 112,
    "height": 84,
    "min_objects": 1,
    "max_objects": 3,
    "language": "english",
    "seed": 0,
    "teachers": TEACHERS,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder that holds the data set of VALUES. Not to be changed."""
    folder = tmp_path_factory.mktemp("synthetic")
    load(folder, **VALUES)
    return folder


def read_state(folder):
    """Return the modification time and bytes of every file in `folder` except locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_the_files_are_read_back_as_they_were_drawn(root, tmp_path, language):
    splits = load(root if language == "english" else tmp_path, **{**VALUES, "language": language})
    assert (len(splits.train), len(splits.validation)) == (4, 2)
    for split, samples in (("train", splits.train), ("validation", splits.validation)):
        for index, sample in enumerate(samples):
            picture = sample.student
            with Image.open(picture.path) as opened:
                assert opened.size == (picture.width, picture.height)
            scene = {key: VALUES[key] for key in ("min_objects", "max_objects")}
            size = {"width": picture.width, "height": picture.height}
            _, objects = draw((0, split, index), **size, **scene, language=language)
            assert picture.objects == objects


def test_lines_are_flat_with_a_relative_path(root):
    folder = load(root, **VALUES).train[0].student.path.parents[1]
    line = json.loads((folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(line) == {"images", "objects"}
    assert line["images"] == ["pictures/train_000000.jpg"]
    assert set(line["objects"][0]) == {"bbox_2d", "desc"}


def test_sizes_vary_up_to_the_given_one(root):
    pictures = [sample.student for sample in load(root, **VALUES).train]
    assert len({(picture.width, picture.height) for picture in pictures}) > 1
    assert all(95 <= picture.width <= 112 and 71 <= picture.height <= 84 for picture in pictures)


def test_a_second_load_writes_nothing(root):
    first = load(root, **VALUES)
    before = read_state(root)
    assert load(root, **VALUES) == first
    assert read_state(root) == before


def test_other_values_get_another_folder_and_other_teachers_do_not(tmp_path):
    def folder_of(**changes):
        return load(tmp_path, **{**VALUES, "num_train": 1, **changes}).train[0].student.path.parent

    none = TeacherDraw(teacher_ratio=0, num_teachers=1, num_validation_teachers=0, seed=1, validation_seed=1)
    first = folder_of(teachers=none)
    assert folder_of(teachers=none, seed=1) != first
    assert folder_of(teachers=none, max_objects=2) != first
    assert folder_of(teachers=none, scene="workbench") != first
    assert folder_of(teachers=replace(none, num_validation_teachers=1)) == first


def test_cores_that_share_the_drawing_draw_the_same(root, tmp_path, monkeypatch):
    def read_files(folder):
        return {path.name: path.read_bytes() for path in folder.rglob("*.j*") if path.is_file()}

    monkeypatch.setattr("bbu_train.data.cabinets.synthetic.MIN_PARALLEL", 2)
    load(tmp_path, **VALUES)
    assert read_files(tmp_path) == read_files(root)
    assert len(read_files(root)) == 8  # pictures and lines


def test_the_split_is_part_of_the_drawing(root):
    splits = load(root, **VALUES)
    pictures = [sample.student.path.read_bytes() for sample in (*splits.train, *splits.validation)]
    assert len(set(pictures)) == 6


def test_an_interrupted_drawing_does_not_count_as_complete(tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def interrupt_at_the_third(*arguments, **keywords):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(save(*arguments, **keywords))

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Image.Image, "save", interrupt_at_the_third)
        load(tmp_path, **VALUES)
    assert len(load(tmp_path, **VALUES).train) == 4
    assert [path.suffix for path in sorted(tmp_path.iterdir()) if path.is_dir()] == [""]


def test_several_that_load_at_once_all_get_the_complete_set(tmp_path):
    with ThreadPoolExecutor(3) as threads:
        splits = list(threads.map(lambda _: load(tmp_path, **VALUES), range(3)))
    assert splits[0] == splits[1] == splits[2]
    assert len(splits[0].train) == 4


def test_all_wrong_values_are_named_at_once(tmp_path):
    wrong = {**VALUES, "scene": "moon", "num_train": 0, "max_objects": -1, "language": "klingon"}
    with pytest.raises(
        InputError, match="(?s)data.num_train=0.*data.max_objects=-1.*data.scene=moon.*data.language=klingon"
    ):
        load(tmp_path, **wrong)
    assert not any(tmp_path.iterdir())


def test_a_minimum_of_objects_above_the_maximum_is_an_error(tmp_path):
    with pytest.raises(InputError, match="data.max_objects=3: less than data.min_objects=5"):
        load(tmp_path, **{**VALUES, "min_objects": 5})
