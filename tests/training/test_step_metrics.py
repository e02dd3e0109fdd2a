"""The speed and memory that a row of metrics.jsonl states."""

from dataclasses import fields

import pytest
import torch

from bbu_train.ops import flops
from bbu_train.ops.flops import Sizes
from bbu_train.training import step_metrics
from bbu_train.training.step import StepTotals
from bbu_train.training.step_metrics import PeakFlops
from bbu_train.types.batch import Counts

UNKNOWN = PeakFlops(data_sheet=0, matmul=0)


def times(peak):
    sizes = Sizes(**{field.name: 0 for field in fields(Sizes)} | {"tokens": 90})
    totals = StepTotals(Counts(0, 0, 0, 0), sizes, num_positions=120, should_end=False)
    return step_metrics.time_metrics(2.0, 0.5, totals, step_flops=6 * 10**12, peak=peak)


def test_rates_are_over_the_seconds_of_the_step_and_shares_over_what_the_devices_reach():
    row = times(PeakFlops(data_sheet=2 * 10**13, matmul=10**13))
    assert row["time/model_tflops"] == pytest.approx(3)
    assert row["time/mfu"] == pytest.approx(0.15)
    assert row["time/share_of_matmul"] == pytest.approx(0.3)
    assert row["time/tokens_per_second"] == 45
    assert row["time/packing_efficiency"] == 0.75


def test_a_device_of_unknown_rate_has_no_share():
    assert not {"time/mfu", "time/share_of_matmul"} & times(UNKNOWN).keys()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_has_no_known_rate(precision):
    assert step_metrics.peak_flops(torch.device("cpu"), precision) == UNKNOWN


def test_one_process_reports_its_own_memory_alone():
    row = step_metrics.memory_metrics(torch.device("cpu"))
    assert list(row) == ["memory/peak_gib"]
    assert 0.01 < row["memory/peak_gib"] < 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_a_gpu_leaves_it_as_it_was(precision):
    device = torch.device("cuda")
    flops.measured_matmul_flops(device, precision)  # the workspace of the first product stays
    state, held = torch.cuda.get_rng_state(), torch.cuda.memory_allocated()
    assert flops.measured_matmul_flops(device, precision) > 1e12
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.cuda.memory_allocated() == torch.cuda.max_memory_allocated() == held
