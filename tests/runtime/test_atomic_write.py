import os
import socket
import threading
from pathlib import Path

import pytest

from bbu_train.runtime.atomic_write import atomic_write, make_folder


def test_a_file_is_replaced_and_no_temporary_file_is_left(tmp_path):
    path = tmp_path / "state.json"
    for content, expected in (("ä", "ä".encode()), (b"\xff", b"\xff")):
        atomic_write(path, content)
        assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


def test_the_contents_are_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    path, flushed = tmp_path / "state.json", []

    def fsync(descriptor):
        flushed.append((Path(f"/proc/self/fd/{descriptor}").resolve(), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(path, "new")
    (file, was_renamed_before), (folder, was_renamed_after) = flushed
    assert (file.parent, was_renamed_before) == (tmp_path, False)
    assert (folder, was_renamed_after) == (tmp_path, True)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    atomic_write(path, "old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"


def test_a_failed_write_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "state.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_new_folders_are_on_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve()))
    make_folder(tmp_path / "sweep" / "run")
    make_folder(tmp_path / "sweep" / "run")
    assert flushed == [tmp_path / "sweep", tmp_path]


def test_a_link_that_lies_where_the_new_file_is_written_is_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("old")
    unfinished = f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    (tmp_path / unfinished).symlink_to(victim)
    atomic_write(path, "new")
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("old", "new", False)
