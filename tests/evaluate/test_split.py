import json

import pytest

from bbu_train.errors import InputError
from bbu_train.evaluate.split import load_split


@pytest.fixture
def folder(tmp_path, make_picture):
    """Three splits with one picture each, described by the name of its split."""
    for split in ("train", "validation", "test"):
        path = make_picture(f"split-{split}", 84, 56).path
        line = {"images": [str(path)], "objects": [{"bbox_2d": [1, 2, 30, 40], "desc": split}]}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(line))
    return tmp_path


@pytest.mark.parametrize("split", ["train", "validation", "test", "test.jsonl"])
def test_any_split_can_be_loaded_and_teachers_come_from_training_pictures(config, folder, split):
    cfg = config("data=jsonl", f"data.root={folder}", "data.teachers.teacher_ratio=0")
    data, [sample] = load_split(cfg, split)
    assert sample.student.objects[0].description == split.removesuffix(".jsonl")
    assert [picture.objects[0].description for picture in data.pool] == ["train"]


def test_a_missing_split_is_an_error_that_names_its_file(config, folder):
    with pytest.raises(InputError, match="(?s)split=exam: .*exam.jsonl cannot be read"):
        load_split(config("data=jsonl", f"data.root={folder}"), "exam")
