"""What is handed to SLURM. Programs of its names stand for a cluster; submitit is real."""

import shlex
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from whole_runs import CONF

import launchers.launch
import launchers.search.start
from bbu_train.errors import InputError
from launchers import slurm
from launchers.cells import compose
from launchers.launch import launch
from launchers.ledger import RESTARTABLE, Ledger

PROGRAMS = {
    "sbatch": 'cp "${@: -1}" "$SUBMITTED"; echo Submitted batch job 7',
    "scontrol": "echo MaxArraySize = 1000",
    "squeue": "",
    "srun": "",
}


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """The path of the batch script that was submitted last."""
    programs, script = tmp_path / "programs", tmp_path / "submitted.sh"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("SUBMITTED", str(script))
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return script


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs") / "100%"
    return compose(["-m", "hydra/launcher=slurm", f"outputs={outputs}", "sweep=s", "seed=1,2"], CONF)


def test_the_log_of_a_job_lies_in_outputs_with_any_other_character(tmp_path, submitted, cells):
    outputs = tmp_path / 'a b it\'s "so" #1 $HOME `id` ;&| \u6570\u636e e\u0301 {a}[0]*?!'
    launcher = slurm.Slurm(OmegaConf.to_container(cells[0].cfg.cluster, resolve=True), wait=False)
    ledger = Ledger(outputs / "s/ledger")
    runs = [entry.run for entry in ledger.add(cells)]
    launcher.check(ledger)
    launcher.start(ledger, runs, RESTARTABLE)
    lines = submitted.read_text().splitlines()
    (output,) = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH --output=")]
    assert shlex.split(output) == [f"--output={outputs}/s/ledger/jobs/%A_%a_0_log.out"]
    (command,) = [shlex.split(line) for line in lines if line.startswith("srun ")]
    assert f"{outputs}/s/ledger/jobs/%A_%a_%t_log.out" in command
    assert command[-1] == f"{outputs}/s/ledger/jobs"
    assert len([*(outputs / "s/ledger/jobs").glob("7_?_submitted.pkl")]) == 2


@pytest.mark.parametrize("name", ["100%", "%j", "a%20b", "back\\slash", "two\nlines", "caf\udce9"])
def test_a_path_that_slurm_would_take_for_another_one_is_refused_before_anything_is_submitted(
    tmp_path, submitted, name
):
    ledger = Ledger(tmp_path / name / "s/ledger")
    launcher = slurm.Slurm({}, wait=False)
    for call in (
        partial(launcher.check, ledger),
        partial(launcher.start, ledger, [], RESTARTABLE),
        partial(launcher.start_controller, None, ledger, {}),
    ):
        with pytest.raises(InputError, match=r"SLURM does not keep.*Give outputs="):
            call()
    assert not submitted.exists()


def test_outputs_are_refused_before_the_sweep_is_checked(cells, monkeypatch):
    monkeypatch.setattr(launchers.launch, "compose", lambda *_: cells)
    monkeypatch.setattr(launchers.launch, "check_cells", lambda *_: pytest.fail("the sweep was checked"))
    with pytest.raises(InputError, match="SLURM does not keep"):
        launch(["-m", "hydra/launcher=slurm", "seed=1,2"], CONF)
    assert not Path(cells[0].cfg.outputs).exists()


def test_outputs_are_refused_before_a_search_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers.search.start, "check_cells", lambda *_: pytest.fail("the search was checked"))
    words = ["search=tpe", "search.metric=loss", "seed=interval(1,3)", f"outputs={tmp_path}/100%", "sweep=s"]
    with pytest.raises(InputError, match="SLURM does not keep"):
        launch(["-m", "hydra/launcher=slurm", *words], CONF)
    assert not (tmp_path / "100%").exists()
