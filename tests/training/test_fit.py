"""The layout that a GPU gets: what is predicted not to fit is left out, and a trial decides. Its memory is made up."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.runs.settings import CHECKPOINTING, MICRO_BATCHES
from bbu_train.training import auto, fit, setup
from bbu_train.training.layout import Layout
from bbu_train.training.machine import cpu

GIB = 2**30
SMALL = ("head.num_queries=12", "head.d_model=32", "head.num_heads=2", "head.max_caption_tokens=8")


class Run:
    """A run of the tiny model on the CPU whose trials measure the memory that `peaks` has for each layout, in GiB.

    A trial runs out of memory in the backward pass if its layout has none.
    """

    def __init__(self, cfg, samples, monkeypatch):
        teachers = TeacherDraw(teacher_ratio=0, num_teachers=0, num_validation_teachers=0, seed=1, validation_seed=1)
        self.cfg = cfg
        self.inputs = setup.prepare(cfg, setup.RunData(Splits(samples, samples, teachers, {}), {}))
        machine = cpu(1, 1)
        self.applied = auto.apply(cfg, auto.settings(cfg, machine, {}))
        self.prediction = fit.predict(cfg, self.applied, True, self.inputs, 1)
        torch.manual_seed(0)
        applied = auto.apply(self.applied, fit.settings_of(cfg, *fit.first_layout(cfg, None)))
        parts = {name: instantiate(applied[name], _convert_="all") for name in ("loss", "optimizer", "engine", "head")}
        self.model = setup.build(applied.model.network)(device=torch.device("cpu"), head=parts["head"])
        self.optimizer = parts["optimizer"](self.model)
        self.optimizer.allocate()
        groups = parameters_by_group(self.optimizer)
        self.engine = parts["engine"](self.model, parts["loss"], self.optimizer, groups, torch.device("cpu"))
        average = setup.build(cfg.average)(self.model, self.optimizer)
        self.trial = fit.MemoryTrial(self.engine, parts["loss"], self.model, self.inputs, average)
        self.peaks: dict[Layout, float] = {}
        self.tried: list[Layout] = []
        self.backward = self.engine.backward
        monkeypatch.setattr(self.engine, "backward", self.run_backward)
        cuda = {
            "current_device": lambda: 0,
            "get_rng_state": lambda _device: None,
            "set_rng_state": lambda _state, _device: None,
            "reset_peak_memory_stats": lambda _device: None,
            "max_memory_allocated": lambda _device: int(self.peaks[self.layout] * GIB),
        }
        for name, function in cuda.items():
            monkeypatch.setattr(torch.cuda, name, function)

    @property
    def layout(self):
        return self.tried[-1]

    def run_backward(self, objective):
        """Run the backward pass, note the layout, and run out of memory where there is none."""
        self.backward(objective)
        choice = next(layer.gradient_checkpointing for layer in self.model.backbone.model.language_model.layers)
        assert choice == (self.expected.gradient_checkpointing in ("selective", "full"))
        self.tried.append(self.expected)
        if self.expected not in self.peaks:
            self.peaks[self.expected] = 0
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def try_out(self, *layouts, available):
        by_number = {each.layout.num_micro_batches: each for each in self.prediction.candidates}
        candidates = [replace(by_number[layout.num_micro_batches], layout=layout) for layout in layouts]
        lay_out = self.engine.lay_out

        def note(checkpointing, number):
            self.expected = Layout(checkpointing, number)
            lay_out(checkpointing, number)

        self.engine.lay_out = note
        return fit.try_out(
            fit.LayoutPlan(self.prediction, candidates, ["none x 1 needs 9"], int(available * GIB), 1), self.trial
        )

    def state(self):
        """Everything that a trial must leave as it is."""
        tensors = [p.detach().clone() for p in self.model.parameters()]
        tensors += [value.clone() for state in self.optimizer.state.values() for value in state.values()]
        assert all(p.grad is None for p in self.model.parameters())
        return [*tensors, self.engine.objective_sum.clone(), torch.get_rng_state()]


@pytest.fixture
def make_run(config, samples, monkeypatch):
    return lambda *overrides: Run(config(*SMALL, "sampler.num_samples=2", *overrides), samples, monkeypatch)


NONE, SELECTIVE, FULL, TWO = Layout("none", 1), Layout("selective", 1), Layout("full", 1), Layout("full", 2)


def test_the_first_layout_that_leaves_a_margin_is_taken_and_the_reason_names_the_others(make_run):
    run = make_run()
    run.peaks = {SELECTIVE: 7.9, FULL: 3, TWO: 2}
    taken, reason = run.try_out(NONE, SELECTIVE, FULL, TWO, available=8)
    assert taken == FULL
    assert reason == (
        "3.0 of 8.0 GiB in a trial; none x 1 needs 9; none x 1 ran out in a trial; selective x 1 took 7.9 GiB in "
        "a trial"
    )
    assert [*dict.fromkeys(run.tried)] == [NONE, SELECTIVE, FULL]
    assert run.engine.num_micro_batches == 1


def test_a_trial_leaves_weights_optimizer_and_gradients_as_they_were(make_run):
    run = make_run()
    before = run.state()
    run.peaks = {FULL: 3}
    run.try_out(NONE, FULL, available=8)
    assert all(torch.equal(one, other) for one, other in zip(before, run.state(), strict=True))


def test_a_step_in_several_micro_batches_is_tried_with_the_gradients_of_the_first_beside_the_second(make_run):
    run = make_run()
    run.peaks = {TWO: 2}
    run.try_out(TWO, available=8)
    assert run.tried == [TWO, TWO]


def test_the_last_layout_is_taken_without_a_margin_and_refused_only_if_it_runs_out(make_run):
    run = make_run()
    run.peaks = {SELECTIVE: 7.99}
    assert run.try_out(SELECTIVE, available=8)[0] == SELECTIVE
    with pytest.raises(InputError, match=r"(?s)The run does not fit: .*GiB.*What would fit"):
        run.try_out(FULL, available=0.01)


def test_what_is_predicted_too_large_is_left_out_and_a_given_layout_is_tried_in_any_case(make_run):
    run = make_run()
    peaks = [candidate.prediction.peak for candidate in run.prediction.candidates]
    planned = fit.plan(run.prediction, int(min(peaks) / 0.9), 1)
    assert [each.prediction.peak for each in planned.candidates] == [peak for peak in peaks if peak < min(peaks) / 0.9]
    assert planned.left_out[0].startswith("none x 1 needs ")
    with pytest.raises(InputError, match="does not fit"):
        fit.plan(run.prediction, min(peaks) // 2, 1)
    given = make_run(f"{CHECKPOINTING}=none", f"{MICRO_BATCHES}=1")
    assert len(fit.plan(given.prediction, 1, 1).candidates) == 1


def test_on_a_cpu_a_step_is_whole(config):
    assert fit.first_layout(config(), None)[0] == Layout("none", 1)
    assert fit.first_layout(config(f"{CHECKPOINTING}=full", f"{MICRO_BATCHES}=3"), None)[0] == Layout("full", 3)


def test_a_trial_that_contradicts_the_prediction_says_so(make_run):
    run = make_run()
    with pytest.raises(InputError, match=r"into 64.0 GiB, although less was predicted: .*none x 1 ran out in a trial"):
        run.try_out(NONE, available=64)
