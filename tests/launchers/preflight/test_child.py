"""The requirements of a training step, computed before a sweep, equal what a run of that config logs and saves."""

import json

import pytest
from omegaconf import OmegaConf
from whole_runs import weights

from bbu_train.training.forecast import NUM_STEPS
from bbu_train.training.setup import build
from launchers.preflight import child


@pytest.fixture(scope="module")
def requirements(uninterrupted):
    return child.compute_requirements(OmegaConf.load(uninterrupted / "config.yaml"))


def test_the_flops_of_a_step_are_what_a_run_logs(requirements, uninterrupted):
    rows = map(json.loads, (uninterrupted / "metrics.jsonl").read_text().splitlines())
    tflops = [row["time/model_tflops"] * row["time/step_seconds"] for row in rows if "loss/total" in row]
    assert requirements["flops"] / 1e12 == pytest.approx(sum(tflops[:NUM_STEPS]) / NUM_STEPS)


def test_the_memory_holds_the_weights_and_the_optimizer_state_that_a_run_saves(requirements, uninterrupted):
    num_bytes = sum(weight.nbytes for weight in weights(uninterrupted).values())
    checkpoints = build(OmegaConf.load(uninterrupted / "config.yaml").checkpoint)
    states = checkpoints.latest().state()["optimizer"]["state"].values()
    num_bytes += sum(value.nbytes for state in states for name, value in state.items() if name != "step")
    assert num_bytes < requirements["num_bytes"]


def test_an_average_needs_four_more_bytes_for_each_weight_and_again_while_it_is_applied(requirements, uninterrupted):
    cfg = OmegaConf.load(uninterrupted / "config.yaml")
    target = {"_target_": "bbu_train.average.ema.ExponentialMovingAverage", "_partial_": True}
    cfg.average = target | {"decay": 0.9, "num_steps": cfg.steps}
    num_weights = sum(weight.numel() for weight in weights(uninterrupted).values())
    added = child.compute_requirements(cfg)["num_bytes"] - requirements["num_bytes"]
    assert 4 * num_weights <= added <= 8 * num_weights
