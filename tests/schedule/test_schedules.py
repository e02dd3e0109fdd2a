"""Schedules: the factor of every group's learning rate as a function of the step."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from bbu_train.errors import InputError
from bbu_train.schedule.constant import Constant
from bbu_train.schedule.warmup_cosine import WarmupCosine


def test_warmup_and_cosine_equal_those_of_torch():
    num_steps, num_warmup_steps, final_ratio = 25, 5, 0.1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peak = num_warmup_steps - 1
    warmup = LinearLR(optimizer, start_factor=1 / num_warmup_steps, total_iters=peak)
    cosine = CosineAnnealingLR(optimizer, T_max=num_steps - 1 - peak, eta_min=final_ratio)
    sequence = SequentialLR(optimizer, [warmup, cosine], milestones=[peak])
    expected = []
    for _ in range(num_steps):
        expected += sequence.get_last_lr()
        optimizer.step()
        sequence.step()
    schedule = WarmupCosine(num_steps, num_warmup_steps, final_ratio)
    assert [schedule(step) for step in range(num_steps)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_warmup_steps", [0, 1])
def test_without_warmup_the_first_step_has_the_full_rate(num_warmup_steps):
    schedule = WarmupCosine(10, num_warmup_steps, 0.0)
    assert schedule(0) == 1
    assert schedule(9) == pytest.approx(0)


@pytest.mark.parametrize(("num_steps", "num_warmup_steps"), [(1, 0), (1, 1), (2, 0), (5, 5)])
def test_the_full_rate_is_reached_however_short_the_run(num_steps, num_warmup_steps):
    schedule = WarmupCosine(num_steps, num_warmup_steps, 0.1)
    assert max(schedule(step) for step in range(num_steps)) == 1


def test_after_the_last_step_the_rate_stays():
    schedule = WarmupCosine(10, 2, 0.25)
    assert schedule(9) == pytest.approx(0.25)
    assert schedule(1000) == pytest.approx(0.25)


def test_constant_rises_to_one_and_stays():
    assert [Constant(4)(step) for step in (0, 1, 2, 3, 4, 1000)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_constant_without_warmup_is_one():
    assert Constant(0)(0) == 1


def test_all_invalid_values_of_a_schedule_are_reported_at_once():
    with pytest.raises(InputError, match=r"(?s)2 problems.*num_warmup_steps=20 is above steps=10.*final_ratio=2"):
        WarmupCosine(10, 20, 2.0)
    with pytest.raises(InputError, match="num_steps=-1"):
        WarmupCosine(-1, 0, 0.0)
    with pytest.raises(InputError, match="num_warmup_steps=-1: expected a whole number"):
        Constant(-1)
