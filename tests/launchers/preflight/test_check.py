"""A sweep with anything wrong in it starts nothing, and says all that is wrong."""

from pathlib import Path

import pytest

from bbu_train.errors import InputError
from launchers.cells import compose
from launchers.preflight import check as preflight

CONF = Path(__file__).resolve().parents[3] / "conf"


def refused(folder: Path, *overrides: str) -> str:
    given = ["-m", "hydra/launcher=local", f"outputs={folder}", "data.num_train=8", "data.num_validation=2", *overrides]
    cells = compose(given, CONF)
    with pytest.raises(InputError) as refusal:
        preflight.check(cells, [])
    return str(refusal.value)


def test_every_problem_of_data_and_groups_is_named_with_the_cells_that_have_it(tmp_path):
    says = refused(
        tmp_path,
        "head.num_queries=100,1",
        "optimizer.groups.llm.pattern=language_model,foo",
        "optimizer.groups.llm.lr=1e-3,2e-3,-1",
    )
    assert (
        "head.num_queries=1 optimizer.groups.llm.pattern=language_model optimizer.groups.llm.lr=0.001 and 5 more"
        in says
    )
    assert "more objects than head.num_queries=1" in says
    assert "optimizer.groups.llm.pattern=foo optimizer.groups.llm.lr=0.001 and 1 more cells: optimizer: " in says
    assert 'no parameter has "foo" in its name' in says
    assert "optimizer.groups.llm.pattern=language_model optimizer.groups.llm.lr=-1: optimizer: 1 problem" in says
    assert "Traceback" not in says


def test_missing_weights_are_said_first(tmp_path):
    says = refused(tmp_path, "model=tiny,qwen25vl3b", "model.checkpoint=/nowhere", "model.weights=pretrained")
    assert "The weights of /nowhere are missing" in says


def test_cells_that_differ_in_rates_or_seeds_alone_are_checked_once(tmp_path):
    cells = compose(["-m", "hydra/launcher=local", "seed=1,2", "optimizer.groups.llm.lr=1e-3,2e-3,0"], CONF)
    data, groups = preflight.tasks(cells).values()
    assert data == [[0, 1, 2, 3, 4, 5]]
    assert groups == [[0, 1, 3, 4], [2, 5]]
