import math
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.types.samples import Picture, Sample

ALWAYS_TWO = TeacherDraw(teacher_ratio=1, num_teachers=2, num_validation_teachers=1, seed=5, validation_seed=5)


@pytest.fixture
def pictures(tmp_path):
    """Eight pictures of one size in bytes and different content."""
    paths = [tmp_path / f"{number}.bmp" for number in range(8)]
    for number, path in enumerate(paths):
        Image.new("L", (4, 4), number).save(path)
    return tuple(Picture(path, 4, 4, ()) for path in paths)


def samples_of(pictures, teachers=None):
    return tuple(Sample(f"train.jsonl:{number}", picture, teachers) for number, picture in enumerate(pictures, 1))


def samples_with(picture, num_samples):
    return [Sample(f"train.jsonl:{number}", picture, None) for number in range(num_samples)]


def test_a_draw_depends_on_seed_epoch_and_sample_alone(pictures):
    samples = samples_of(pictures)
    drawn = [ALWAYS_TWO.draw(sample, 3, pictures) for sample in samples]
    in_reverse = [replace(ALWAYS_TWO).draw(sample, 3, pictures) for sample in reversed(samples)]
    assert drawn == in_reverse[::-1]
    assert drawn != [ALWAYS_TWO.draw(sample, 4, pictures) for sample in samples]
    assert drawn != [replace(ALWAYS_TWO, seed=6).draw(sample, 3, pictures) for sample in samples]
    assert len(set(drawn)) > 1


def test_runs_that_differ_in_seed_are_validated_with_the_same_teachers(pictures):
    samples = samples_of(pictures)

    def draw(**changes):
        return [replace(ALWAYS_TWO, **changes).draw_validation(sample, pictures) for sample in samples]

    assert draw(seed=1) == draw(seed=2)
    assert draw(validation_seed=1) != draw(validation_seed=2)


def test_the_number_of_teachers_covers_its_range_and_nothing_else(pictures):
    draw = replace(ALWAYS_TWO, num_teachers=[1, 3])
    assert {len(draw.draw(sample, 0, pictures)) for sample in samples_with(pictures[0], 100)} == {1, 2, 3}


@pytest.mark.parametrize("ratio", [0, 0.0, 0.3, 0.7, 1, 1.0])
def test_the_ratio_is_the_share_of_students_with_teachers(pictures, ratio):
    draw = replace(ALWAYS_TWO, teacher_ratio=ratio)
    share = sum(bool(draw.draw(sample, 0, pictures)) for sample in samples_with(pictures[0], 1000)) / 1000
    assert math.isclose(share, ratio, abs_tol=0 if ratio in (0, 1) else 0.05)


def test_every_picture_of_the_pool_is_drawn_about_equally_often(pictures):
    draw = replace(ALWAYS_TWO, num_teachers=1)
    drawn = [draw.draw(sample, 0, pictures)[0] for sample in samples_with(pictures[0], 1400)]
    assert all(150 < drawn.count(picture) < 250 for picture in pictures[1:])


def test_teachers_are_distinct(pictures):
    draw = replace(ALWAYS_TWO, num_teachers=7)
    for epoch in range(20):
        assert set(draw.draw(samples_of(pictures)[0], epoch, pictures)) == set(pictures[1:])


def test_teachers_are_distinct_in_content_too(pictures, tmp_path):
    shutil.copy(pictures[1].path, tmp_path / "copy.bmp")
    pool = (pictures[1], Picture(tmp_path / "copy.bmp", 4, 4, ()), pictures[2])
    for epoch in range(20):
        drawn = ALWAYS_TWO.draw(samples_of(pictures)[0], epoch, pool)
        assert pictures[2] in drawn


@pytest.mark.parametrize("kind", ["same", "link", "copy", "detour"])
def test_teachers_never_include_the_students_own_picture(pictures, tmp_path, kind):
    path = {"same": pictures[0].path, "detour": tmp_path / ".." / tmp_path.name / "0.bmp"}.get(kind, tmp_path / "x.bmp")
    if kind == "link":
        path.symlink_to(pictures[0].path)
    if kind == "copy":
        shutil.copy(pictures[0].path, path)
    student = Sample("train.jsonl:1", Picture(path, 4, 4, ()), None)
    for epoch in range(20):
        assert pictures[0] not in ALWAYS_TWO.draw(student, epoch, pictures[:3])
    assert pictures[0] not in replace(ALWAYS_TWO, num_validation_teachers=2).draw_validation(student, pictures[:3])


@pytest.mark.parametrize("num", [0, 1, 2])
def test_validation_gets_exactly_its_number_of_teachers_whatever_the_ratio(pictures, num):
    draw = replace(ALWAYS_TWO, teacher_ratio=0, num_validation_teachers=num)
    drawn = [draw.draw_validation(sample, pictures) for sample in samples_of(pictures)]
    assert [len(teachers) for teachers in drawn] == [num] * len(pictures)
    assert drawn == [draw.draw_validation(sample, pictures) for sample in samples_of(pictures)]


def test_fixed_teachers_stay_in_training_and_validation(pictures):
    for fixed in ((), pictures[3:4]):
        (sample, *_) = samples_of(pictures, teachers=fixed)
        assert ALWAYS_TWO.draw(sample, 0, pictures) == ALWAYS_TWO.draw_validation(sample, pictures) == fixed


def test_a_pool_that_is_too_small_for_training_is_an_error_at_once(pictures):
    Splits(samples_of(pictures[:3]), (), ALWAYS_TWO, {})
    with pytest.raises(
        InputError, match=r"(?s)holds 2 different pictures.*num_teachers=2 needs 3; data.teachers.num_teachers=1 w"
    ):
        Splits(samples_of(pictures[:2]), (), ALWAYS_TWO, {})


def test_a_pool_that_is_too_small_for_validation_is_an_error_at_once(pictures):
    draw = replace(ALWAYS_TWO, teacher_ratio=0, num_validation_teachers=2)
    expected = r"(?s)holds 1 different picture.*num_validation_teachers=2 needs 2; .*num_validation_teachers=1 works"
    with pytest.raises(InputError, match=expected):
        Splits(samples_of(pictures[:1]), samples_of(pictures[1:]), draw, {})


def test_a_small_pool_is_accepted_if_nothing_is_drawn(pictures):
    fixed = samples_of(pictures[:1], teachers=())
    assert Splits(fixed, fixed, ALWAYS_TWO, {}).pool == pictures[:1]


def test_a_pool_of_copies_is_an_error_that_names_the_sample(pictures):
    with pytest.raises(InputError, match=r"train\.jsonl:1 needs 2 teachers, but .* only 1 differ"):
        ALWAYS_TWO.draw(samples_of(pictures)[0], 0, (pictures[0], pictures[1], pictures[1]))


def test_pictures_without_annotation_are_not_in_the_pool(pictures):
    unannotated = replace(pictures[0], objects=None)
    assert Splits(samples_of((unannotated, *pictures[1:])), (), ALWAYS_TWO, {}).pool == pictures[1:]


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_ratio": 1.5},
        {"teacher_ratio": -0.1},
        {"teacher_ratio": float("nan")},
        {"num_teachers": -1},
        {"num_teachers": [2, 1]},
        {"num_teachers": [1, 2, 3]},
        {"num_teachers": [True, 2]},
        {"num_validation_teachers": -1},
        {"num_validation_teachers": True},
        {"seed": True},
        {"validation_seed": True},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_named_by_its_key(changes):
    (key,) = changes
    with pytest.raises(InputError, match=rf"data\.teachers\.{key}="):
        replace(ALWAYS_TWO, **changes)


def test_all_wrong_arguments_are_named_at_once():
    with pytest.raises(InputError, match="2 problems"):
        TeacherDraw(teacher_ratio=2, num_teachers=[3, 1], num_validation_teachers=0, seed=0, validation_seed=0)
