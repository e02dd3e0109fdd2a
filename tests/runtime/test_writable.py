"""A place where nothing can be written is refused with what lies there, before anything is done."""

import os

import pytest

from bbu_train.errors import InputError
from bbu_train.runtime.writable import require_writable


@pytest.mark.parametrize("name", ["file", "file/below/it", "link"])
def test_a_file_is_no_folder(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=rf"outputs={tmp_path}/{name}: {tmp_path}/(file|link) is .* Give a folder"):
        require_writable("outputs", tmp_path / name)
    require_writable("outputs", tmp_path / "new" / "folder")


def test_a_folder_of_others_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match=rf"you may not write into {tmp_path}"):
        require_writable("out", tmp_path / "new")
