"""Checkpoints: they load as they were saved, damage is reported, and a kill at any moment loses no committed one."""

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from forked import processes

from bbu_train.checkpoint import local
from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.errors import InputError
from bbu_train.runtime.seeds import generator


def store(folder: Path, keep_last: int = 2, best_mode: str = "max") -> LocalCheckpoints:
    return LocalCheckpoints(folder, keep_last, best_metric="eval/ap50", best_mode=best_mode)


def save(checkpoints: LocalCheckpoints, step: int, **metrics: float) -> Path:
    metrics = {name.replace("_", "/"): value for name, value in metrics.items()}
    return checkpoints.save(step, {"weight": torch.full((3, 2), float(step))}, {"step": step}, metrics)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir() if path.name.startswith("step-"))


def test_a_checkpoint_loads_as_it_was_saved(tmp_path):
    weights = {"a": torch.randn(3, 2, dtype=torch.bfloat16), "b": torch.arange(3.0)}
    state = {"step": 7, "optimizer": {0: {"moment": torch.randn(2)}}, "names": ["x", "y"], "rate": 0.1, "none": None}
    store(tmp_path).save(7, weights, state, {"eval/ap50": 0.5})
    loaded = store(tmp_path).latest()
    assert (loaded.step, loaded.metrics) == (7, {"eval/ap50": 0.5})
    torch.testing.assert_close(loaded.weights(), weights, rtol=0, atol=0)
    torch.testing.assert_close(loaded.state()["optimizer"], state["optimizer"], rtol=0, atol=0)
    assert {k: v for k, v in loaded.state().items() if k != "optimizer"} == {
        k: v for k, v in state.items() if k != "optimizer"
    }


def test_whoever_may_read_one_file_of_a_checkpoint_may_read_all(tmp_path):
    modes = {path.stat().st_mode for path in save(store(tmp_path), 1).iterdir()}
    assert len(modes) == 1


def test_a_transposed_matrix_keeps_its_values(tmp_path):
    matrix = torch.arange(6.0).view(2, 3).T
    store(tmp_path).save(1, {"a": matrix}, {}, {})
    assert torch.equal(store(tmp_path).latest().weights()["a"], matrix)


def test_a_tied_parameter_under_two_names_is_refused(tmp_path):
    weight = torch.ones(2)
    with pytest.raises(AssertionError, match="embed and lm_head are one tensor"):
        store(tmp_path).save(1, {"embed": weight, "lm_head": weight}, {}, {})


def test_a_state_that_could_not_be_loaded_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(AssertionError, match=r"state\['data'\]\[1\] is a PosixPath"):
        store(tmp_path).save(1, {}, {"data": [0, Path("/")]}, {})


def test_an_empty_folder_has_no_newest_and_no_best(tmp_path):
    checkpoints = store(tmp_path / "absent")
    assert checkpoints.latest() is None
    assert checkpoints.best() is None


def test_the_last_few_and_the_best_are_kept(tmp_path):
    for step, ap50 in [(10, 0.1), (20, 0.9), (30, 0.2), (40, 0.3), (50, 0.4)]:
        save(store(tmp_path), step, eval_ap50=ap50)
    assert steps(tmp_path) == [20, 40, 50]


def test_with_mode_min_the_smallest_value_is_best(tmp_path):
    for step, ap50 in [(10, 0.1), (20, 0.9)]:
        save(store(tmp_path), step, eval_ap50=ap50)
    assert store(tmp_path, best_mode="min").best().step == 10


def test_the_newer_of_equally_good_checkpoints_is_best(tmp_path):
    for step in (10, 20):
        save(store(tmp_path), step, eval_ap50=0.5)
    assert store(tmp_path).best().step == 20


def test_a_checkpoint_without_the_metric_is_never_the_best(tmp_path):
    save(store(tmp_path), 10, eval_ap50=0.1)
    save(store(tmp_path), 20, eval_ap50=float("nan"))
    save(store(tmp_path), 30, eval_loss=0.1)
    assert store(tmp_path).best().step == 10


def test_asking_for_a_step_that_was_not_saved_lists_the_saved_steps(tmp_path):
    save(store(tmp_path), 10)
    assert store(tmp_path).at(10).step == 10
    with pytest.raises(InputError, match=r"no checkpoint of step 11\. Steps saved there: 10"):
        store(tmp_path).at(11)


def test_saving_a_step_again_replaces_it(tmp_path):
    save(store(tmp_path), 10)
    store(tmp_path).save(10, {"weight": torch.zeros(1)}, {}, {})
    assert torch.equal(store(tmp_path).latest().weights()["weight"], torch.zeros(1))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_saving_an_earlier_step_deletes_later_checkpoints(tmp_path):
    for step in (10, 20, 30):
        save(store(tmp_path, keep_last=3), step)
    save(store(tmp_path, keep_last=3), 15)
    assert steps(tmp_path) == [10, 15]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_a_flipped_byte_is_detected_and_the_older_checkpoint_is_named(tmp_path, name):
    save(store(tmp_path), 10)
    damaged = save(store(tmp_path), 20) / name
    contents = bytearray(damaged.read_bytes())
    contents[len(contents) // 2] ^= 1
    damaged.write_bytes(contents)
    newest = store(tmp_path).latest()
    assert newest.step == 20
    with pytest.raises(InputError, match=rf"{name}.*SHA-256.*older checkpoint is \S*step-00000010.* delete the folder"):
        newest.weights() if name == "model.safetensors" else newest.state()


def test_a_truncated_file_is_named_with_its_size(tmp_path):
    path = save(store(tmp_path), 10) / "state.pt"
    os.truncate(path, 5)
    with pytest.raises(InputError, match=r"state\.pt: it has 5 bytes, expected \d+\. There is no older"):
        store(tmp_path).latest().state()


@pytest.mark.parametrize("name", ["manifest.json", "state.pt"])
def test_a_missing_file_is_named(tmp_path, name):
    (save(store(tmp_path), 10) / name).unlink()
    with pytest.raises(InputError, match=f"{name}: it is missing"):
        store(tmp_path).latest().state()


@pytest.mark.parametrize("contents", ["", "[]", '{"step": 10}', '{"step": 11, "metrics": {}, "files": {}}'])
def test_a_changed_manifest_is_named(tmp_path, contents):
    (save(store(tmp_path), 10) / "manifest.json").write_text(contents)
    with pytest.raises(InputError, match=r"manifest\.json: it is not a valid manifest"):
        store(tmp_path).latest().weights()


def test_a_damaged_manifest_is_never_taken_for_one_without_the_metric(tmp_path):
    (save(store(tmp_path), 10, eval_ap50=0.9) / "manifest.json").write_text("")
    with pytest.raises(InputError, match=r"step-00000010/manifest\.json"):
        save(store(tmp_path), 20, eval_ap50=0.1)
    assert steps(tmp_path) == [10, 20]


def test_unusable_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"(?s)keep_last=0: .*best_mode=least: expected max or min"):
        store(tmp_path, keep_last=0, best_mode="least")


# Kills


def assert_the_newest_loads(folder: Path, at_least: int) -> int:
    newest = store(folder).latest()
    assert newest.step >= at_least
    assert newest.state() == {"step": newest.step}
    assert torch.equal(newest.weights()["weight"], torch.full((3, 2), float(newest.step)))
    return newest.step


def save_each_step_twice(folder: Path, first: int, ready: Connection) -> None:
    ready.send(None)
    for step in range(first, first + 100_000):
        save(store(folder), step, eval_ap50=float(step % 7))
        save(store(folder), step, eval_ap50=float(step % 7))


def test_a_kill_at_a_random_moment_leaves_the_newest_loadable(tmp_path):
    newest, began = 0, time.monotonic()
    save(store(tmp_path), newest)
    max_delay = max(0.05, 10 * (time.monotonic() - began))  # seconds: enough for several saves on a busy machine too
    for delay in generator("kills").uniform(0, max_delay, size=20):
        parent, child = processes.Pipe()
        writer = processes.Process(target=save_each_step_twice, args=(tmp_path, newest, child))
        writer.start()
        parent.recv()
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        newest = assert_the_newest_loads(tmp_path, at_least=newest)
    assert newest > 0


def save_and_die_at_each_line(folder: Path, step: int) -> None:
    """Fork writers that kill themselves before the n-th line that they would run in local.py, for n = 1, 2, ...

    Once a writer has committed the checkpoint, the later writers replace it.
    """
    newest, num_lines, status = 0, 0, signal.SIGKILL
    while status == signal.SIGKILL:
        num_lines += 1
        if (pid := os.fork()) == 0:
            sys.settrace(make_killer(num_lines))
            save(store(folder), step)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        newest = assert_the_newest_loads(folder, at_least=newest)
    assert status == 0
    assert num_lines > 50


def make_killer(num_lines: int) -> Callable[[FrameType, str, object], Any]:
    """Return a trace function that kills the process before its `num_lines`-th line in local.py."""
    remaining = num_lines

    def trace(frame, event, _):
        nonlocal remaining
        if frame.f_code.co_filename != local.__file__:
            return None
        remaining -= event == "line"
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def test_a_kill_before_any_line_of_a_save_leaves_the_newest_loadable(tmp_path):
    for earlier in (5, 8, 10):
        save(store(tmp_path), earlier)
    process = processes.Process(target=save_and_die_at_each_line, args=(tmp_path, 20))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert steps(tmp_path) == [10, 20]
