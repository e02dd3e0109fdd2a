"""What a row says of the time and the memory of a step."""

import pytest
import torch

from bbu_train.ops import flops
from bbu_train.training import step_metrics


def test_useful_work_is_over_the_seconds_of_the_step_and_over_what_the_devices_can_do():
    row = step_metrics.times(
        seconds=2.0, waited=0.5, num_tokens=90, num_slots=120, num_operations=6 * 10**12, peak_matmul_rate=10**13
    )
    assert row["time/model_tflops"] == pytest.approx(3)
    assert row["time/useful_share"] == pytest.approx(0.3)
    assert row["time/tokens_per_second"] == 45
    assert row["time/packing_efficiency"] == 0.75


def test_without_a_known_rate_there_is_no_share():
    assert "time/useful_share" not in step_metrics.times(1.0, 0.0, 1, 1, num_operations=1, peak_matmul_rate=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_of_a_cpu_is_not_measured(precision):
    assert flops.peak_matmul_rate(torch.device("cpu"), precision) == 0


def test_one_process_has_its_own_memory_alone():
    row = step_metrics.memory(torch.device("cpu"))
    assert list(row) == ["memory/peak_gib"]
    assert 0.01 < row["memory/peak_gib"] < 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_is_measured_and_left_as_it_was(precision):
    device = torch.device("cuda")
    flops.peak_matmul_rate(device, precision)  # the workspace of the first product stays
    state, held = torch.cuda.get_rng_state(), torch.cuda.memory_allocated()
    assert flops.peak_matmul_rate(device, precision) > 1e12
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.cuda.memory_allocated() == torch.cuda.max_memory_allocated() == held
