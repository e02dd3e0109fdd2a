from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.images.files import ENDINGS
from bbu_train.predict.pictures import build_samples, find_pictures
from bbu_train.types.samples import Sample


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "深/er").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "深/c.jpeg", "深/er/[1].png"):
        Image.new("RGB", (60, 40), "grey").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def data(make_picture):
    """Two training pictures."""
    pictures = make_picture("one", 84, 56, ((1, 2, 30, 40), "bbu/zte")), make_picture("two", 56, 84)
    samples = [Sample(f"train.jsonl:{i}", picture, None) for i, picture in enumerate(pictures, 1)]
    draw = TeacherDraw(teacher_ratio=0, num_teachers=0, num_validation_teachers=1, seed=1, validation_seed=1)
    return Splits((samples[0], samples[1]), (), draw, {})


def names(paths, folder):
    return [str(path.relative_to(folder)) for path in paths]


def test_a_folder_gives_all_its_pictures_a_pattern_its_matches_and_a_file_itself(folder):
    assert names(find_pictures(str(folder)), folder) == ["a.JPG", "b.png", "深/c.jpeg", "深/er/[1].png"]
    assert names(find_pictures(f"{folder}/*.*g"), folder) == ["b.png"]
    assert names(find_pictures(f"{folder}/**/*.png"), folder) == ["b.png", "深/er/[1].png"]
    assert find_pictures(f"{folder}/深/er/[1].png") == [folder / "深/er/[1].png"]
    assert names(find_pictures(f"{folder}/*"), folder) == ["a.JPG", "b.png"]
    assert find_pictures(f"{folder}/notes.txt") == [folder / "notes.txt"]  # build_samples finds that it is no picture


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_folder_gives_the_endings_that_data_reads_in_any_case(tmp_path, ending):
    for name in (f"a{ending}", f"b{ending.upper()}", f"c{ending}.txt", f"d{ending[1:]}"):
        (tmp_path / name).touch()
    assert [path.name for path in find_pictures(str(tmp_path))] == [f"a{ending}", f"b{ending.upper()}"]


@pytest.mark.parametrize("images", ["", "*", "**/*", "**/*.jpg"])
def test_hidden_files_and_folders_are_left_out_unless_the_command_names_them(tmp_path, images):
    folder = tmp_path / ".data"  # what is named is taken, though it is hidden
    hidden = (".hidden.jpg", "._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "b/.trash/b.jpg")
    for name in ("a.jpg", *hidden):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(folder / name)
    assert names(find_pictures(str(folder / images)), folder) == ["a.jpg"]
    for name in hidden:
        assert names(find_pictures(str(folder / name)), folder) == [name]
    assert names(find_pictures(f"{folder}/.ipynb_checkpoints/*"), folder) == [hidden[2]]


def test_a_picture_is_found_in_either_unicode_form_of_its_name(tmp_path):
    for written, on_disk in (("NFC", "NFD"), ("NFD", "NFC")):
        path = tmp_path / on_disk / normalize(on_disk, "répéteur.jpg")
        path.parent.mkdir()
        path.touch()
        assert find_pictures(str(path.parent / normalize(written, path.name))) == [path]
        for pattern in ("répét*.jpg", "*éteur.*"):
            assert find_pictures(str(path.parent / normalize(written, pattern))) == [path]


def test_a_pattern_finds_pictures_in_folders_of_either_unicode_form(tmp_path):
    path = tmp_path / normalize("NFD", "été/répéteur") / "a.jpg"
    path.parent.mkdir(parents=True)
    path.touch()
    for pattern in ("été/répéteur/*.jpg", "été/*/a.jpg", "*/répéteur/a.jpg", "**/répéteur/*"):
        assert find_pictures(f"{tmp_path}/{normalize('NFC', pattern)}") == [path]


@pytest.mark.parametrize(
    ("images", "there"),
    [("nowhere", "has .*a.JPG"), ("*.gif", "has .*a.JPG"), ("emtpy/*.jpg", "has empty, "), ("empty", "has nothing")],
)
def test_no_picture_is_an_error_that_says_what_is_there(folder, images, there):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=f"no file.*{there}"):
        find_pictures(str(folder / images))


def test_all_pictures_that_cannot_be_read_or_have_a_wrong_shape_are_listed_at_once(folder, builder):
    (folder / "cut.jpg").write_bytes((folder / "a.JPG").read_bytes()[:200])
    pixels = bytearray((folder / "b.png").read_bytes())
    pixels[50:60] = bytes(10)
    (folder / "damaged.png").write_bytes(pixels)  # only decoding can find it
    (folder / "link.png").symlink_to("nothing.png")
    Image.new("RGB", (30, 6200)).save(folder / "ladder.png")
    with pytest.raises(InputError) as caught:
        build_samples([*find_pictures(str(folder)), folder / "notes.txt"], builder.picture_format, None, 0)
    assert "5 problems" in str(caught.value)
    assert all(name in str(caught.value) for name in ("cut.jpg", "damaged.png", "ladder.png", "link.png", "notes.txt"))


def test_a_picture_has_its_upright_size(folder, builder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder / "turned.jpg", exif=exif)
    (sample,) = build_samples([folder / "turned.jpg"], builder.picture_format, None, 0)
    assert (sample.student.width, sample.student.height) == (40, 60)
    assert sample.student.objects is None
    assert sample.teachers == ()


def test_a_picture_of_the_runs_data_has_its_objects_under_any_path(data, builder, tmp_path):
    original = data.train[0].student
    (tmp_path / "link.png").symlink_to(original.path)
    samples = build_samples([original.path, tmp_path / "link.png"], builder.picture_format, data, 0)
    assert [sample.student.objects for sample in samples] == [original.objects] * 2
    assert samples[0].id != samples[1].id


def test_teachers_are_those_of_validation_and_never_the_picture_itself_or_a_copy(data, builder, tmp_path):
    first, second = (sample.student for sample in data.train)
    copy = tmp_path / "copy.png"
    copy.write_bytes(first.path.read_bytes())
    samples = build_samples([first.path, copy], builder.picture_format, data, 1)
    assert [sample.teachers for sample in samples] == [(second,), (second,)]
    assert samples[0].teachers == data.teachers.draw_validation(data.train[0], data.pool)


def test_relative_paths_stay_relative(folder, builder, monkeypatch):
    monkeypatch.chdir(folder)
    (sample,) = build_samples(find_pictures("b.png"), builder.picture_format, None, 0)
    assert (sample.id, sample.student.path) == ("b.png", Path("b.png"))
