"""What a sweep will take, from runs that are done or by arithmetic."""

import json
from pathlib import Path

import pytest

from bbu_train.runs import folder as run_folder
from launchers.cells import compose
from launchers.preflight import estimate

CONF = Path(__file__).resolve().parents[3] / "conf"


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
    found = cells("steps=200", "seed=1,2", "optimizer.groups.llm.lr=1e-4,2e-4")
    says = estimate.report(found, estimate.measured(found))
    assert f"Expected of 4 runs: 2 to 2 h of training steps each and 20.5 GiB, as default/{done.cfg.run} took." in says
    assert "In all 8 h of jobs, 32 GPU-hours; evaluations come on top." in says


@pytest.mark.parametrize(
    "other",
    ["head=none", "optimizer.groups.llm.lr=0", "cluster.nodes=2", "engine.precision=bf16", "sampler=token_budget"],
)
def test_a_run_of_another_shape_says_nothing(cells, finish, other):
    finish(cells("steps=10")[0], seconds=1.0)
    assert estimate.measured(cells("steps=10", other)) == [None]


@pytest.mark.parametrize("config", ["seed: [", "seed: 3"])
def test_a_damaged_run_says_nothing(cells, finish, config):
    (done,) = cells("steps=10")
    finish(done, seconds=1.0)
    Path(done.cfg.folder, run_folder.CONFIG).write_text(config)
    assert estimate.measured(cells("steps=10", "seed=2")) == [None]


def test_an_unfinished_run_says_nothing(cells, finish):
    finish(cells("steps=10")[0], seconds=1.0, steps=9)
    found = cells("steps=10", "seed=1,2", "head=detr,none")
    assert estimate.unmeasured(found, estimate.measured(found)) == [[0, 2], [1, 3]]


def test_without_such_a_run_arithmetic_and_the_clusters_rate_say_what_a_sweep_takes(cells):
    found = cells("steps=180", "seed=1,2", "cluster.tflops_per_gpu=400", "cluster.nodes=2", "cluster.tasks_per_node=4")
    needs = [estimate.computed(cell, operations=32e15, num_bytes=48 * 2**30) for cell in found]
    says = estimate.report(found, needs)
    assert "Expected of 2 runs: 0.5 to 0.5 h of training steps each and at least 48 GiB" in says
    assert "by 3.2e+04 TFLOP a step at cluster.tflops_per_gpu=400." in says
    assert "In all 1 h of jobs, 8 GPU-hours; evaluations come on top." in says


def test_without_a_rate_the_time_is_called_unknown_and_left_out_of_the_total(cells):
    found = cells("steps=180")
    says = estimate.report(found, [estimate.computed(found[0], operations=32e15, num_bytes=48 * 2**30)])
    assert "Expected of 1 runs: at least 48 GiB" in says
    assert "in a time that is unknown" in says
    assert "GPU-hours" not in says
    known = estimate.Need(36.0, "20 GiB, as s/run took.")
    both = estimate.report([*found, *found], [known, estimate.computed(found[0], operations=1.0, num_bytes=1)])
    assert "In all 1.8 h of jobs, 7.2 GPU-hours, and what is unknown; evaluations come on top." in both
