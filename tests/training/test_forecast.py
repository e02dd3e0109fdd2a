"""What `--check` says of a run: numbers that the run itself logs, on this machine or for a card that is not here."""

import re

import pytest
from hydra.errors import InstantiationException

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.runtime import screen
from bbu_train.training import setup
from bbu_train.training.forecast import forecast
from bbu_train.training.machine import cpu, named_machine

SMALL = ("steps=3", "sampler.num_samples=2", "head.max_caption_tokens=8", "schedule.num_warmup_steps=1")


@pytest.fixture
def foresee(config, samples):
    def foresee(machine, *overrides):
        teachers = TeacherDraw(0, 0, 0, seed=1, validation_seed=1)
        loaded = setup.RunData(Splits(samples, samples, teachers, {}), {})
        cfg = config(*SMALL, *overrides)
        known = forecast(cfg, machine, 1, {}, loaded)
        return known, screen.as_text(known.sections(cfg))

    return foresee


def test_the_plan_the_groups_and_the_settings_are_said(foresee, make_model, samples):
    known, text = foresee(cpu(4, 3))
    assert f"3 steps: {3 * 2 / len(samples):.2f} epochs of {len(samples)} samples; a step has " in text
    num_weights = sum(p.numel() for p in known.prediction.outline.model.backbone.model.visual.blocks.parameters())
    assert num_weights > 0
    assert "auto    on the CPU, 3 of 4 cores free" in text
    assert "not planned on a CPU" in text
    assert all(p.device.type == "meta" for p in known.prediction.outline.model.parameters())


def test_the_weights_of_all_groups_are_those_of_the_model(foresee):
    known, text = foresee(cpu(1, 1), "optimizer.groups.vision.lr=0")
    rows = [line.split() for line in text.splitlines() if re.match(r" +\w+ +[\d,]+  (lr|frozen)", line)]
    counts = {row[0]: int(row[1].replace(",", "")) for row in rows}
    assert sum(counts.values()) == sum(p.numel() for p in known.prediction.outline.model.parameters())
    assert {row[0]: row[2:] for row in rows}["vision"] == ["frozen"]
    assert {row[0]: row[2:] for row in rows}["llm"][0] == "lr"


def test_memory_is_planned_for_a_card_that_is_not_here(foresee):
    known, text = foresee(named_machine("h100"), "model.compile=true")
    assert "memory  on h100: 78.2 GiB are available" in text
    assert "none x 1" not in text  # nothing was left out: the tiny model fits
    assert known.settings["engine.gradient_checkpointing"].value == "none"
    assert known.num_bytes() == known.planned.candidates[0].prediction.peak
    assert known.planned.candidates[0].prediction.table().splitlines()[0].strip() in text


def test_a_run_that_cannot_fit_is_refused_with_what_would(foresee):
    with pytest.raises(InputError, match=r"(?s)does not fit.*What would fit"):
        foresee(named_machine("1.02"))


def test_faults_are_reported_from_the_cheapest_to_find_to_the_dearest(foresee):
    """Values, then data, then groups of parameters, then memory: whoever mends one sees the next."""
    faults = {
        "log_every=0": "log_every=0: expected",
        "head.num_queries=1": "more objects than head.num_queries=1",
        "optimizer.groups.llm.pattern=foo": 'no parameter has "foo" in its name',
        "steps=2": "The run does not fit",  # on this card; no fault itself
    }
    for i, expected in enumerate(faults.values()):
        with pytest.raises((InputError, InstantiationException), match=expected):
            foresee(named_machine("1.02"), *list(faults)[i:])


def test_the_operations_of_a_step_are_those_of_the_model(foresee, make_model):
    (on_cpu, _), (on_gpu, _) = foresee(cpu(1, 1)), foresee(named_machine("24"))
    assert on_cpu.flops_per_step() == on_gpu.flops_per_step() > 0


@pytest.mark.parametrize("card", ["H1000", "big"])
def test_an_unknown_card_is_refused_with_those_that_are_known(card):
    with pytest.raises(InputError, match=rf"--check={card}: expected one of B200, H200, .* such as --check=24"):
        named_machine(card)


def test_a_run_without_steps_has_no_plan(foresee):
    with pytest.raises(InputError, match="steps=0"):
        foresee(cpu(1, 1), "steps=0")
