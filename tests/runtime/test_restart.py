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
from forked import start_program
from whole_runs import assert_equal_runs, command, leave_out_plots

from bbu_train.training.learnt_layout import FILE

SMALL = ["steps=2", "save_every=1", "eval_every=null", "head=none", "loss=language", "data.num_train=8"]


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
    before = partial(restarts.fail_and_end_instead_of_exec, str(tmp_path / "note"))
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


@pytest.mark.slow
def test_torchrun_sees_no_process_end_when_the_ranks_start_again(outputs, tmp_path):
    arguments = command(outputs, "torchrun", *SMALL, "sweep=restarts-of-torchrun")[1:]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "restarts"]
    paths = os.pathsep.join([str(Path(restarts.__file__).parent), *sys.path])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "from step 2 on, 4 micro-batches a step instead of 2" in done.stdout
    folder = outputs / "restarts-of-torchrun/torchrun"
    assert_equal_runs(folder, undisturbed(folder), step=2)
