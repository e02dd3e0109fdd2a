"""A sweep with any fault starts nothing, and its error lists every fault."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import run_command

from bbu_train.errors import InputError
from launchers.cells import compose
from launchers.preflight import check
from launchers.preflight.check import check_cells, group_for_checks

CONF = Path(__file__).resolve().parents[3] / "conf"
SMALL_DATA = ("data.num_train=8", "data.num_validation=2")


@pytest.fixture(autouse=True)
def _forked_child(monkeypatch):
    """Fork the check's process, which saves its imports. The sweep of test_local.py starts it by its command."""
    monkeypatch.setattr(check, "subprocess", SimpleNamespace(run=run_command, PIPE=subprocess.PIPE))


def error_of(folder: Path, *overrides: str) -> str:
    cells = compose(["-m", "hydra/launcher=local", f"outputs={folder}", *SMALL_DATA, *overrides], CONF)
    with pytest.raises(InputError) as error:
        check_cells(cells, groups_without_estimate=[])
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
    assert "loss.weights.giou=-1 augmentation=flips: The config: 1 problem." in message


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
    values, data, parameter_groups = group_for_checks(cells).values()
    assert values == [[0, 1, 2], [3, 4, 5]]
    assert data == [[0, 1, 2, 3, 4, 5]]
    assert parameter_groups == [[0, 1, 3, 4], [2, 5]]
