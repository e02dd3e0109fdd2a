"""Compiled graphs that go from one node to another in a file."""

import logging
import os
import stat

import pytest
import torch
from torch._dynamo.utils import counters

from bbu_train.runtime.compile_cache import NUM_STEPS, CompileCache

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # raised inside torch


def product(states, weight):
    return states @ weight  # generated code calls torch's product, so no C++ is compiled


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Start as on a new node, load the file, compile, save; return the file and how often torch's cache hit."""

    def start(node="node", choices="width 8", function=product):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / node))
        torch.compiler.reset()
        torch.compiler._cache.CacheArtifactManager.clear()
        counters.clear()
        cache = CompileCache(tmp_path / "outputs", {"model": choices}, torch.device("cpu"))
        cache.load()
        torch.compile(function, dynamic=True)(torch.rand(3, 8), torch.rand(8, 8))
        for _ in range(NUM_STEPS):
            cache.step_done()
        return cache.path, counters["aot_autograd"]["autograd_cache_hit"]

    return start


def test_another_node_compiles_nothing_again(run):
    path, _ = run("first")
    assert run("second") == (path, 1)


def test_nobody_else_can_read_or_write_the_file(run):
    path, _ = run()
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)


def test_the_file_is_written_again_only_if_something_new_was_compiled(run):
    path, _ = run("first")
    first = path.stat().st_ino
    assert run("second")[0].stat().st_ino == first
    assert run("third", function=lambda states, weight: states @ weight @ weight)[0].stat().st_ino != first


def test_other_choices_have_another_file(run):
    assert run(choices="width 8")[0] != run(choices="width 16")[0]


def let_others_write(path, monkeypatch):
    path.chmod(0o620)


def let_others_write_the_folder(path, monkeypatch):
    path.parent.chmod(0o770)


def give_to_another_user(path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)


def replace_by_a_link(path, monkeypatch):
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def cut(path, monkeypatch):
    path.write_bytes(path.read_bytes()[:-1])


def change_a_byte(path, monkeypatch):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (let_others_write, "can be written by others"),
        (let_others_write_the_folder, "can be written by others"),
        (give_to_another_user, "belongs to user"),
        (replace_by_a_link, "symbolic link"),
        (cut, "are damaged"),
        (change_a_byte, "are damaged"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_not_taken(run, monkeypatch, caplog, change, message):
    caplog.set_level(logging.WARNING, "bbu_train")
    path, _ = run("first")
    change(path, monkeypatch)
    assert run("second") == (path, 0)
    assert message in caplog.text


def test_nothing_is_written_into_a_folder_that_others_can_write_nor_through_a_link(tmp_path, run, caplog):
    folder = tmp_path / "outputs/.compile_cache"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    path, _ = run()
    assert not path.exists()
    assert "can be written by others" in caplog.text
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    run()
    assert list((tmp_path / "elsewhere").iterdir()) == []
