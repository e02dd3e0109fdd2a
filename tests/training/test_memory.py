"""Predicted memory is close to what torch allocates, and the error for what does not fit names what would."""

from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import pytest
import torch
from hydra.utils import instantiate

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.ops.activations import Execution
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.training import changes, memory, memory_phases, micro_batches, setup, validation, what_fits
from bbu_train.training.layout import Layout
from bbu_train.training.outline import Outline, smallest_published

SMALL = ("head.num_queries=12", "head.d_model=32", "head.num_heads=2")
FEW_BLOCKS = (
    "model.shape.text_config.num_hidden_layers=2",
    "model.shape.vision_config.depth=2",
    "model.shape.vision_config.fullatt_block_indexes=[1]",
)


class Run(NamedTuple):
    """What train.py builds of a config for the four samples, and how it computes."""

    cfg: object
    inputs: setup.RunInputs
    model: torch.nn.Module
    criterion: object
    optimizer: torch.optim.Optimizer
    average: object
    engine: object
    execution: Execution

    def plan(self, layout, num_ranks=1):
        parts = self.model, self.optimizer, self.average, self.inputs
        return next(memory.plan_memory(*parts, [layout], self.execution, num_ranks, True))

    def batch(self):
        return self.inputs.collator(
            [self.inputs.train.encode(visit) for visit in self.plan(Layout("none", 1)).training.visits]
        )


@pytest.fixture
def make_run(resolved_config, samples):
    def make(*overrides, device="cpu"):
        cfg = resolved_config(*FEW_BLOCKS, *(() if "head=none" in overrides else SMALL), *overrides)
        fields = {"teacher_ratio": 0, "num_teachers": 0, "num_validation_teachers": 0}
        splits = Splits(samples, samples, TeacherDraw(**fields, seed=1, validation_seed=1), {})
        inputs = setup.prepare(cfg, setup.RunData(splits, {}))
        torch.manual_seed(0)
        parts = {name: instantiate(cfg[name], _convert_="all") for name in ("loss", "optimizer", "average", "engine")}
        head = instantiate(cfg.head, _convert_="all")
        model = instantiate(cfg.model.network, _convert_="all")(device=torch.device(device), head=head)
        optimizer = parts["optimizer"](model)
        average = parts["average"](model, optimizer)
        groups = parameters_by_group(optimizer)
        engine = parts["engine"](model, parts["loss"], optimizer, groups, torch.device(device))
        execution = Execution(cfg.engine.precision, False, "sdpa", cfg.engine.gradient_checkpointing, False)
        return Run(cfg, inputs, model, parts["loss"], optimizer, average, engine, execution)

    return make


def peak_of(function):
    """The most bytes that torch's CPU allocator held during `function`, beside those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def measure_step(run):
    """The measured and the predicted peak of forward and backward, of tensors that do not stay for the whole run."""
    batch = run.batch()

    def step():
        losses = run.engine(batch)
        run.engine.backward(run.criterion.objective(losses, batch.counts))

    measured = peak_of(step)
    stays = memory_phases.resident(run.model, run.optimizer, run.average)
    sizes = micro_batches.sizes_of(batch)
    predicted = memory_phases.backward_bytes(run.model, stays, sizes, run.execution, False)
    return measured, int(predicted) - stays.without_gradients


def test_predicted_peaks_are_what_torch_allocates_at_every_checkpointing(make_run):
    choices = (f"engine.gradient_checkpointing={choice}" for choice in ("none", "selective", "full"))
    peaks = [measure_step(make_run("head=detr", "collator=packed", choice)) for choice in choices]
    for measured, predicted in peaks:
        assert 0.95 * measured < predicted < 1.2 * measured
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ("head=dino", "collator=standard", "engine.gradient_checkpointing=selective"),
        ("head=detr", "engine.precision=bf16", "collator=packed"),
        ("head=none", "loss=language", "optimizer.groups.vision.lr=0"),
        ("head=detr", "model.vocabulary_chunk=64"),
    ],
)
def test_the_predicted_peak_is_what_torch_allocates_for_other_choices(make_run, overrides):
    measured, predicted = measure_step(make_run(*overrides))
    assert 0.95 * measured < predicted < 1.2 * measured


@pytest.mark.parametrize("captions", [(1, 6), (4, 24)], ids=["short", "long, in four layers"])
def test_an_evaluation_needs_no_more_than_predicted(make_run, captions):
    sizes = f"head.num_caption_layers={captions[0]}", f"head.max_caption_tokens={captions[1]}"
    run = make_run("head=detr", "collator=packed", *sizes)
    candidate = run.plan(Layout("none", 1))
    stays = memory_phases.resident(run.model, run.optimizer, run.average)
    predicted = candidate.prediction.evaluation - stays.without_gradients
    arguments = run.inputs, run.engine, run.model, run.criterion, 0, lambda: None
    measured = peak_of(lambda: validation.evaluate(*arguments))
    assert 0.95 * measured < predicted < 1.5 * measured


def test_what_stays_is_what_a_run_holds_after_a_step(make_run):
    run = make_run("head=none", "loss=language", "average=ema", "engine.precision=bf16")
    stays = memory_phases.resident(run.model, run.optimizer, run.average)
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    state = sum(tensor.nbytes for state in run.optimizer.state.values() for tensor in state.values() if tensor.ndim)
    assert stays.optimizer == state
    assert stays.average == sum(tensor.nbytes for tensor in run.average.averages.values())
    assert stays.weights == sum(tensor.nbytes for tensor in (*run.model.parameters(), *run.model.buffers()))


def test_the_need_of_a_choice_is_that_of_a_run_with_it(make_run):
    layout, overrides = Layout("full", 1), ["average=ema", "engine.precision=bf16"]
    choices = what_fits.find_choices(what_fits_run(make_run(*overrides, device="meta"), layout), 2**60)
    assert len(choices) >= 5
    for choice in choices:
        if not choice.overrides[0].startswith(("model.max_pixels", "optimizer.groups.llm", "engine.gradient")):
            run = make_run(*overrides, *choice.overrides[0].split(), device="meta")
            assert choice.num_bytes == run.plan(layout).prediction.peak, choice


def test_the_error_for_what_does_not_fit_names_what_would(make_run):
    deep = "model.shape.text_config.num_hidden_layers=4"  # so that the head is a small part
    run = make_run("average=ema", "engine.precision=bf16", deep, device="meta")
    least = what_fits_run(run, Layout("full", 1))
    trained = [parameter.requires_grad for parameter in run.model.parameters()]
    text = str(what_fits.does_not_fit(least, int(0.9 * least.least.prediction.peak)))
    assert "it needs 0.0 GiB of 0.0 GiB with engine.gradient_checkpointing=full engine.num_micro_batches=1" in text
    assert "average=none: 0.0 GiB" in text
    assert "\n  head=none loss=language:" not in text
    assert trained == [parameter.requires_grad for parameter in run.model.parameters()]
    assert run.model.head is not None


def test_two_choices_are_named_where_neither_is_enough(make_run):
    run = what_fits_run(make_run("average=ema", "engine.precision=bf16", device="meta"), Layout("full", 1))
    singles = what_fits.find_choices(run, 2**60)
    limit = min(choice.num_bytes for choice in singles) - 1024
    choices = what_fits.find_choices(run, int(limit / (1 - memory.MARGIN)))
    assert choices
    assert all(len(choice.overrides) == 2 and choice.num_bytes <= limit for choice in choices)


def test_a_layout_that_the_config_forbids_is_named_if_it_would_fit(make_run):
    run = make_run("head=none", "loss=language", device="meta")
    needed = {choice: run.plan(Layout(choice, 1)).prediction.peak for choice in ("none", "full")}
    forbidding = what_fits_run(run, Layout("none", 1))
    choices = what_fits.find_choices(forbidding, int(needed["full"] / (1 - memory.MARGIN)) + 1024)
    assert needed["full"] < needed["none"]
    assert any("engine.gradient_checkpointing=full" in choice.overrides[0] for choice in choices)


def test_a_smaller_model_is_named_if_it_would_fit(make_run):
    larger, layout = make_run(device="meta"), Layout("full", 1)
    smaller = make_run("model.shape.text_config.num_hidden_layers=1", device="meta")
    outline = Outline(smaller.model, smaller.optimizer, smaller.average)
    run = replace(what_fits_run(larger, layout), published=lambda: outline)
    choice = ("model=qwen25vl3b",), smaller.plan(layout).prediction.peak
    assert choice in what_fits.find_choices(run, 2**60)
    assert choice not in what_fits.find_choices(what_fits_run(larger, layout), 2**60)


def test_the_smallest_published_model_has_the_sizes_of_its_file(resolved_config):
    cfg = resolved_config("head=none", "loss=language", "engine.precision=bf16")
    config = smallest_published(cfg).model.backbone.config
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (2048, 36)


def what_fits_run(run, layout):
    """The run, whose published model is as large as its own."""
    parts = run.model, run.optimizer, run.average
    return changes.Run(*parts, run.inputs, run.plan(layout), run.execution, 1, lambda: Outline(*parts))
