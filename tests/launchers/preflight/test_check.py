"""A sweep with any fault starts nothing, and its error lists every fault."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import run_command

from bbu_train.errors import InputError
from bbu_train.runs import identity
from launchers.cells import compose
from launchers.ledger import Ledger
from launchers.preflight import check
from launchers.preflight.check import check_cells, group_by_values, group_for_checks, with_steps

CONF = Path(__file__).resolve().parents[3] / "conf"
SMALL_DATA = ("data.num_train=8", "data.num_validation=2")


@pytest.fixture(autouse=True)
def _forked_child(monkeypatch):
    """Fork the check's process, which saves its imports. The sweep of test_local.py starts it by its command."""
    monkeypatch.setattr(check, "subprocess", SimpleNamespace(run=run_command, PIPE=subprocess.PIPE))


def error_of(folder: Path, *overrides: str) -> str:
    cells = compose(["-m", "hydra/launcher=local", f"outputs={folder}", *SMALL_DATA, *overrides], CONF)
    with pytest.raises(InputError) as error:
        check_cells(cells, [], {})
    return str(error.value)


def test_every_problem_of_data_and_groups_is_named_with_the_cells_that_have_it(tmp_path):
    message = error_of(
        tmp_path,
        "head.num_queries=100,1",
        "optimizer.groups.llm.pattern=language_model,foo",
        "optimizer.groups.llm.lr=1e-3,2e-3,-1",
    )
    first = "head.num_queries=1 optimizer.groups.llm.pattern=language_model optimizer.groups.llm.lr=0.001 and 5 more"
    assert first in message
    assert "more objects than head.num_queries=1" in message
    assert "optimizer.groups.llm.pattern=foo optimizer.groups.llm.lr=0.001 and 1 more cells: optimizer: " in message
    assert 'no parameter has "foo" in its name' in message
    assert "optimizer.groups.llm.pattern=language_model optimizer.groups.llm.lr=-1: optimizer: 1 problem" in message
    assert "Traceback" not in message


def test_a_wrong_value_that_only_some_cells_have_is_found(tmp_path):
    message = error_of(tmp_path, "loss.weights.giou=1,-1", "augmentation=none,flips")
    assert message.startswith("The sweep: 2 problems.")
    assert "loss.weights.giou=-1 augmentation=flips: loss.weights.giou=-1: expected a number" in message


def test_a_cell_whose_loss_leaves_the_head_random_is_refused(tmp_path):
    message = error_of(tmp_path, "loss=joint,language")
    assert "loss=language: The model has a head" in message
    assert "Take head=none or loss=joint." in message
    assert "loss=joint:" not in message


def test_missing_weights_are_reported_first(tmp_path):
    message = error_of(tmp_path, "model=tiny,qwen25vl3b", "model.checkpoint=/nowhere", "model.weights=pretrained")
    assert "The weights of /nowhere are missing" in message


def test_cells_that_differ_only_in_rates_or_seeds_are_checked_once(tmp_path):
    cells = compose(["-m", "hydra/launcher=local", "seed=1,2", "optimizer.groups.llm.lr=1e-3,2e-3,0"], CONF)
    data, parameter_groups = group_for_checks(cells).values()
    assert group_by_values(cells) == [[0, 1, 2], [3, 4, 5]]
    assert data == [[0, 1, 2, 3, 4, 5]]
    assert parameter_groups == [[0, 1, 3, 4], [2, 5]]


def test_the_epochs_of_a_sweep_are_counted_in_steps_for_every_cell_and_its_ledger(tmp_path):
    """An experiment's steps do not count beside epochs. The seed may change what a row has, so it is counted apart."""
    swept = ("epochs=1,0.5,3", "seed=1,2", "experiment=smoke", "sampler.num_samples=4", "schedule.num_warmup_steps=1")
    cells = compose(["-m", "hydra/launcher=local", f"outputs={tmp_path}", *SMALL_DATA, *swept], CONF)
    assert {cell.cfg.steps for cell in cells} == {None}
    known_steps = {}
    assert check_cells(cells, [], known_steps) == {}
    assert len(known_steps) == 6
    counted = [with_steps(cell, known_steps) for cell in cells]
    assert [(cell.cfg.steps, cell.cfg.schedule.num_steps) for cell in counted] == [(n, n) for n in (2, 2, 1, 1, 6, 6)]
    entries = Ledger(tmp_path / "ledger").add(counted)
    assert [entry.cell["steps"] for entry in entries] == [2, 2, 1, 1, 6, 6]
    assert [cell.cfg.run for cell in counted] == [identity.run_identity(entry.config()) for entry in entries]
