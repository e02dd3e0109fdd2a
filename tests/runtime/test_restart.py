"""Several ranks of which one runs out of memory: all of them start again by themselves, and finish the run."""

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import restarts
import torch
from forked import start_program
from whole_runs import assert_equal_runs, command, leave_out_plots

from bbu_train.runtime import restart
from bbu_train.training.learnt_layout import FILE

SMALL = ["steps=2", "save_every=1", "eval_every=null", "head=none", "loss=language", "data.num_train=8", restarts.FAILS]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_ranks(arguments, output, before, environments=({}, {})):
    """Run both ranks; return their exit codes."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank, environment in enumerate(environments):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment}
        ranks.append(start_program(arguments, Path(f"{output}-{rank}.txt"), own, before=before))
    for rank in ranks:
        rank.join()
    return [rank.exitcode for rank in ranks]


def undisturbed(folder):
    """A run in two micro-batches from the other's checkpoint of step 1 on."""
    copy = folder.with_name("undisturbed")
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints/step-00000002")
    assert run_ranks(["bbu_train", f"resume={copy}"], copy, leave_out_plots) == [0, 0]
    return copy


def test_two_ranks_of_which_one_runs_out_of_memory_go_on_from_the_last_checkpoint(outputs, tmp_path):
    """The run has no name in its command: the new processes get the one that rank 0 chose."""
    arguments = [text for text in command(outputs, "", *SMALL, "sweep=restarts") if text != "run="]
    before = partial(restarts.end_instead_of_exec, str(tmp_path / "note"))
    assert run_ranks(arguments, tmp_path / "first", before) == [restarts.REPLACED] * 2
    (folder,) = (outputs / "restarts").iterdir()
    notes = [json.loads((tmp_path / f"note-{rank}.json").read_text()) for rank in range(2)]
    assert [note["arguments"] for note in notes] == [[*arguments, f"run={folder.name}"]] * 2
    environments = [note["environment"] for note in notes]
    assert [environment["BBU_RESTARTS"] for environment in environments] == ["1", "1"]
    again = run_ranks(notes[0]["arguments"], tmp_path / "second", before, environments)
    assert again == [0, 0], (tmp_path / "second-1.txt").read_text()
    assert json.loads((folder / FILE).read_text())["num_parts"] == {"asked": 2, "taken": 4, "step": 1}
    assert "from step 2 on, 4 micro-batches a step instead of 2" in (tmp_path / "second-0.txt").read_text()
    assert_equal_runs(folder, undisturbed(folder), step=2)


@pytest.fixture
def rank_1(monkeypatch):
    """The watch of rank 1 of two. What ends or replaces its process raises SystemExit instead."""

    def end(code, *arguments):
        raise SystemExit(code)

    store = torch.distributed.HashStore()
    monkeypatch.setattr(restart.distributed, "connect_to_store", lambda: store)
    monkeypatch.setattr(restart.distributed, "rank", lambda: 1)
    monkeypatch.setattr(restart.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(restart.distributed, "store_outlives_ranks", lambda: True)
    monkeypatch.setattr(restart, "_end_children", lambda: None)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(os, "execv", end)
    monkeypatch.setattr(os, "environ", {})
    store.set(restart.CALL, "Step 2 ran out of memory.")
    return restart._Watch([])


@pytest.mark.parametrize("last_reason", ["", "Step 1 ran out of memory."])
def test_a_rank_restarts_when_all_have_answered(rank_1, last_reason):
    os.environ[restart.REASON] = last_reason
    rank_1.store.add(restart.ANSWERS, 1)
    with pytest.raises(SystemExit, match=sys.executable):
        rank_1._restart()
    assert os.environ[restart.REASON] == "Step 2 ran out of memory."
    assert restart.distributed.num_restarts() == 1


def test_ranks_that_restart_twice_for_the_same_reason_end_with_2_and_what_to_do(rank_1, capsys):
    os.environ[restart.REASON] = "Step 2 ran out of memory."
    with pytest.raises(SystemExit, match="2"):
        rank_1._restart()
    assert "restarted without any progress. Step 2 ran out of memory. Lower model.max_pixels" in capsys.readouterr().err


def test_a_rank_that_waits_for_an_answer_in_vain_ends_with_75(rank_1, monkeypatch, capsys):
    monkeypatch.setattr(restart, "ANSWER_SECONDS", 0)
    with pytest.raises(SystemExit, match="75"):
        rank_1._restart()
    assert "did not answer" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_sees_no_process_end_when_the_ranks_start_again(outputs, tmp_path):
    arguments = command(outputs, "torchrun", *SMALL, "sweep=restarts-of-torchrun")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    paths = os.pathsep.join([str(Path(restarts.__file__).parent), *sys.path])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "from step 2 on, 4 micro-batches a step instead of 2" in done.stdout
    folder = outputs / "restarts-of-torchrun/torchrun"
    assert_equal_runs(folder, undisturbed(folder), step=2)
