"""What a sweep will take, from runs that are done."""

import json
from pathlib import Path

import pytest

from bbu_train import run_folder
from launchers import estimate
from launchers.cells import compose

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture
def cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: compose(["-m", "hydra/launcher=slurm", "cluster.gpus_per_node=4", *overrides], CONF)


@pytest.fixture
def finish():
    """A function that makes the run of a cell look finished, at so many seconds a step."""

    def make(cell, seconds: float, steps: int | None = None):
        run_folder.create(cell.cfg.folder, cell.cfg)
        rows = [
            {"step": step + 1, "time/step_seconds": 9 * seconds if step < 2 else seconds, "memory/peak_gib": 20.5}
            for step in range(steps or cell.cfg.steps)
        ]
        Path(cell.cfg.folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": ')

    return make


def test_runs_of_the_same_shape_say_what_a_sweep_takes(cells, finish):
    (done,) = cells("steps=100")
    finish(done, seconds=36.0)
    says = estimate.report(cells("steps=200", "seed=1,2", "optimizer.groups.llm.lr=1e-4,2e-4"))
    assert f"Expected of 4 runs: 2 to 2 h of training steps each and 20.5 GiB, as default/{done.cfg.run} took." in says
    assert "In all 8 h of jobs, 32 GPU-hours; evaluations come on top." in says


@pytest.mark.parametrize(
    "other",
    ["head=none", "optimizer.groups.llm.lr=0", "cluster.nodes=2", "engine.precision=bf16", "sampler=token_budget"],
)
def test_a_run_of_another_shape_says_nothing(cells, finish, other):
    finish(cells("steps=10")[0], seconds=1.0)
    assert estimate.report(cells("steps=10", other)) == (
        "Time and memory of 1 runs are unknown: no run of their shape is done here yet."
    )


def test_an_unfinished_run_says_nothing(cells, finish):
    finish(cells("steps=10")[0], seconds=1.0, steps=9)
    assert "unknown" in estimate.report(cells("steps=10", "seed=1"))
