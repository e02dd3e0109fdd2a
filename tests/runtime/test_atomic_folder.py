"""A folder appears whole, or not at all, whenever the process that writes it is killed."""

import errno
import signal

import pytest
from forked import processes
from killed import kill_at_call

from bbu_train.runtime import atomic_folder
from bbu_train.runtime.atomic_folder import open_folder_atomically

NAMES = {"a", "part"}


def write(folder, text):
    with open_folder_atomically(folder) as new:
        (new / "part").mkdir()
        (new / "a").write_text(text)
        (new / "part/b").write_text(text)


def write_killed(folder, text, name, number):
    kill_at_call("bbu_train.runtime.atomic_folder", name, number)
    write(folder, text)


def killed(function, *arguments):
    process = processes.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def contents(folder):
    assert {path.name for path in folder.iterdir()} == NAMES
    first, second = (folder / "a").read_text(), (folder / "part/b").read_text()
    assert first == second
    return first


def test_a_folder_appears_with_all_its_files_and_replaces_another_one(tmp_path):
    for text in ("old", "new"):
        write(tmp_path / "to", text)
        assert contents(tmp_path / "to") == text
        assert [path.name for path in tmp_path.iterdir()] == ["to"]


@pytest.mark.parametrize(("name", "number"), [("flush", 1), ("flush", 4), ("flush", 5)])
def test_a_killed_process_leaves_no_folder_of_the_name_or_a_whole_one(tmp_path, name, number):
    """The fourth flush is the last one before the rename, the fifth comes after it."""
    killed(write_killed, tmp_path / "to", "new", name, number)
    assert (tmp_path / "to").exists() == (number == 5)
    write(tmp_path / "to", "next")  # which deletes what the killed process has left
    assert contents(tmp_path / "to") == "next"
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


@pytest.mark.parametrize(("name", "left"), [("_exchange", "old"), ("rmtree", "new")])
def test_a_process_that_is_killed_while_it_replaces_a_folder_leaves_the_old_or_the_new_one(tmp_path, name, left):
    write(tmp_path / "to", "old")
    killed(write_killed, tmp_path / "to", "new", name, 1)
    assert contents(tmp_path / "to") == left


def test_an_error_leaves_what_was_there(tmp_path):
    write(tmp_path / "to", "old")
    with pytest.raises(ZeroDivisionError), open_folder_atomically(tmp_path / "to") as new:
        (new / "a").write_text(str(1 / 0))
    assert contents(tmp_path / "to") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


class NoExchange:
    """The C library, on a file system that cannot exchange two names."""

    def __init__(self, *arguments, **options): ...

    def renameat2(self, *arguments):
        atomic_folder.ctypes.set_errno(errno.EINVAL)
        return -1


def write_killed_between_renames(folder, text):
    atomic_folder.ctypes.CDLL = NoExchange
    kill_at_call("pathlib:Path", "rename", 2)
    write(folder, text)


def test_without_exchange_a_kill_between_the_renames_costs_the_name_until_the_next_export(tmp_path):
    write(tmp_path / "to", "old")
    killed(write_killed_between_renames, tmp_path / "to", "new")
    assert not (tmp_path / "to").exists()
    with pytest.raises(ZeroDivisionError), open_folder_atomically(tmp_path / "to"):
        1 / 0  # noqa: B018
    assert contents(tmp_path / "to") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def test_a_file_system_without_exchange_takes_two_renames(tmp_path, monkeypatch):
    write(tmp_path / "to", "old")
    monkeypatch.setattr(atomic_folder.ctypes, "CDLL", NoExchange)
    write(tmp_path / "to", "new")
    assert contents(tmp_path / "to") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
