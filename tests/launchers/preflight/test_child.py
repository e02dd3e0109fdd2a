"""What a step of a run takes, computed before the sweep, beside what a run of that config logs and saves."""

import json

import pytest
from omegaconf import OmegaConf
from whole_runs import weights

from launchers.preflight import child


@pytest.fixture(scope="module")
def needs(uninterrupted):
    return child.needs(OmegaConf.load(uninterrupted / "config.yaml"))


def test_the_arithmetic_of_a_step_is_what_a_run_logs(needs, uninterrupted):
    rows = map(json.loads, (uninterrupted / "metrics.jsonl").read_text().splitlines())
    done = [row["time/model_tflops"] * row["time/step_seconds"] for row in rows if "loss/total" in row]
    assert needs["operations"] / 1e12 == pytest.approx(sum(done[: child.NUM_STEPS]) / child.NUM_STEPS)


def test_the_memory_is_that_of_weights_gradients_and_the_optimizers_state(needs, uninterrupted):
    held = 2 * sum(weight.nbytes for weight in weights(uninterrupted).values())  # nothing is frozen
    checkpoints = child.build(OmegaConf.load(uninterrupted / "config.yaml").checkpoint)
    states = checkpoints.latest().state()["optimizer"]["state"].values()
    held += sum(value.nbytes for its in states for name, value in its.items() if name != "step")
    assert needs["num_bytes"] == held


def test_an_average_takes_four_bytes_a_weight_more(needs, uninterrupted):
    cfg = OmegaConf.load(uninterrupted / "config.yaml")
    cfg.average = {"_target_": "bbu_train.average.ema.ExponentialMovingAverage", "_partial_": True, "decay": 0.9}
    num_weights = sum(weight.numel() for weight in weights(uninterrupted).values())
    assert child.needs(cfg)["num_bytes"] - needs["num_bytes"] == 4 * num_weights
