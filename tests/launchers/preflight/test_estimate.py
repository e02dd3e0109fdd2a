"""Time and memory of a sweep, from finished runs or from FLOPs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bbu_train.runs import folder as run_folder
from launchers.cells import Cell, compose
from launchers.preflight.estimate import (
    Estimate,
    format_estimates,
    from_finished_runs,
    from_requirements,
    group_without_estimate,
)

CONF = Path(__file__).resolve().parents[3] / "conf"


@pytest.fixture
def cells(tmp_path, monkeypatch) -> Callable[..., list[Cell]]:
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: compose(["-m", "hydra/launcher=slurm", "cluster.gpus_per_node=4", *overrides], CONF)


def finish(cell: Cell, seconds: float, num_steps: int | None = None) -> None:
    """Write the folder of a cell's run as if it had finished with so many seconds a step."""
    run_folder.create(cell.cfg.folder, cell.cfg, {})
    rows = [
        {"step": step + 1, "time/step_seconds": 9 * seconds if step < 2 else seconds, "memory/peak_gib": 20.5}
        for step in range(num_steps or cell.cfg.steps)
    ]
    Path(cell.cfg.folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": ')


def test_finished_runs_of_the_same_shape_give_the_estimate(cells):
    (done,) = cells("steps=100")
    finish(done, seconds=36.0)
    sweep = cells("steps=200", "seed=1,2", "optimizer.groups.llm.lr=1e-4,2e-4")
    text = format_estimates(sweep, from_finished_runs(sweep))
    assert f"4 runs: 2 to 2 h of training steps each and 20.5 GiB, as default/{done.cfg.run} took." in text
    assert "Total: 8 h of jobs, 32 GPU-hours; evaluations take extra time." in text


def test_a_finished_run_of_another_shape_gives_none(cells):
    finish(cells("steps=10")[0], seconds=1.0)
    others = ["head=none", "optimizer.groups.llm.lr=0", "cluster.nodes=2", "engine.precision=bf16"]
    for other in [*others, "sampler=token_budget"]:
        assert from_finished_runs(cells("steps=10", other)) == [None], other


@pytest.mark.parametrize("config", ["seed: [", "seed: 3"])
def test_a_damaged_run_gives_none(cells, config):
    (done,) = cells("steps=10")
    finish(done, seconds=1.0)
    Path(done.cfg.folder, run_folder.CONFIG).write_text(config)
    assert from_finished_runs(cells("steps=10", "seed=2")) == [None]


def test_an_unfinished_run_gives_none(cells):
    finish(cells("steps=10")[0], seconds=1.0, num_steps=9)
    sweep = cells("steps=10", "seed=1,2", "head=detr,none")
    assert group_without_estimate(sweep, from_finished_runs(sweep)) == [[0, 2], [1, 3]]


def test_without_such_a_run_flops_and_the_clusters_rate_give_the_estimate(cells):
    sweep = cells("steps=180", "seed=1,2", "cluster.tflops_per_gpu=400", "cluster.nodes=2", "cluster.tasks_per_node=4")
    estimates = [from_requirements(cell, flops=32e15, num_bytes=48 * 2**30) for cell in sweep]
    text = format_estimates(sweep, estimates)
    assert "2 runs: 0.5 to 0.5 h of training steps each (computed from 3.2e+04 TFLOP a step at " in text
    assert "cluster.tflops_per_gpu=400), at least 48 GiB for each process" in text
    assert "Total: 1 h of jobs, 8 GPU-hours; evaluations take extra time." in text


def test_without_a_rate_the_time_is_called_unknown_and_left_out_of_the_total(cells):
    (cell,) = cells("steps=180")
    text = format_estimates([cell], [from_requirements(cell, flops=32e15, num_bytes=48 * 2**30)])
    assert "1 run: time unknown (" in text
    assert "48 GiB for each process (predicted)" in text
    assert "GPU-hours" not in text
    known, unknown = Estimate(36.0, "20 GiB, as s/run took", None), from_requirements(cell, flops=1.0, num_bytes=1)
    text = format_estimates([cell, cell], [known, unknown])
    assert "Total: 1.8 h of jobs, 7.2 GPU-hours, plus the unknown ones; evaluations take extra time." in text
