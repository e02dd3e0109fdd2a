"""The engine in one process: forward, backward and update of a step."""

import math
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.engine.ddp import DdpEngine
from bbu_train.errors import InputError
from bbu_train.optimizer.groups import parameters_by_group

CPU = torch.device("cpu")
IDS = ["train.jsonl:3", "train.jsonl:7"]


@pytest.fixture
def make_linear():
    """A function from engine settings to a model with two groups and its engine; the gradients of `objective` are
    (3, 4) and (12)."""
    defaults = {"precision": "fp32", "num_micro_batches": 1, "gradient_checkpointing": "none", "max_grad_norm": None}

    def make(**settings):
        model = nn.ParameterDict({"first": torch.zeros(2), "second": torch.zeros(1)})
        groups = {name: [parameter] for name, parameter in model.items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)  # a step subtracts the gradient
        return model, DdpEngine(model, lambda outputs, batch: {}, optimizer, groups, CPU, **defaults | settings)

    return make


def objective(model):
    return (model["first"] * torch.tensor([3.0, 4.0])).sum() + 12 * model["second"].sum()


def test_a_step_returns_the_norm_of_each_group_and_of_all_before_clipping(make_linear):
    model, engine = make_linear(max_grad_norm=0.1)
    engine.backward(objective(model))
    assert engine.step(IDS) == pytest.approx({"first": 5, "second": 12, "total": 13})


def test_clipping_scales_all_groups_together(make_linear):
    model, engine = make_linear(max_grad_norm=6.5)
    engine.backward(objective(model))
    engine.step(IDS)
    assert model["first"].tolist() == pytest.approx([-1.5, -2])
    assert model["second"].tolist() == pytest.approx([-6])


def test_a_gradient_within_the_limit_is_not_clipped(make_linear):
    model, engine = make_linear(max_grad_norm=13.5)
    engine.backward(objective(model))
    engine.step(IDS)
    assert model["second"].item() == -12


def test_without_a_limit_nothing_is_clipped(make_linear):
    model, engine = make_linear(max_grad_norm=None)
    engine.backward(1e6 * objective(model))
    engine.step(IDS)
    assert model["second"].item() == -12e6


def test_micro_batches_add_up_until_the_step(make_linear):
    model, engine = make_linear()
    for _ in range(2):
        engine.backward(objective(model))
    assert engine.step(IDS)["total"] == pytest.approx(26)
    engine.backward(objective(model))
    assert engine.step(IDS)["total"] == pytest.approx(13)


def test_a_group_that_no_loss_reaches_has_norm_0(make_linear):
    model, engine = make_linear(max_grad_norm=1.0)
    engine.backward(model["second"].sum())
    assert engine.step(IDS) == {"first": 0, "second": 1, "total": 1}
    assert model["first"].tolist() == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("culprit", ["objective", "first"])
def test_a_step_that_is_not_finite_changes_no_weight_and_names_its_samples(make_linear, value, culprit):
    model, engine = make_linear(max_grad_norm=1.0)
    engine.backward(objective(model) + (value if culprit == "objective" else 0))
    if culprit == "first":
        model["first"].grad[1] = value
    with pytest.raises(InputError, match=rf"not finite \(.*{culprit}.*\).*{IDS[0]}, {IDS[1]}"):
        engine.step(IDS)
    assert [parameter.tolist() for parameter in model.values()] == [[0, 0], [0]]
    assert {parameter.grad for parameter in model.parameters()} == {None}


def test_a_refused_step_leaves_nothing_to_the_next(make_linear):
    model, engine = make_linear()
    engine.backward(objective(model) * math.nan)
    with pytest.raises(InputError):
        engine.step(IDS)
    engine.backward(objective(model))
    assert engine.step(IDS)["total"] == pytest.approx(13)


def test_micro_batches_that_were_discarded_leave_nothing_to_the_next_step(make_linear):
    model, engine = make_linear()
    engine.backward(objective(model) * math.nan)
    engine.discard()
    assert {parameter.grad for parameter in model.parameters()} == {None}
    engine.backward(objective(model))
    assert engine.step(IDS)["total"] == pytest.approx(13)


@pytest.mark.parametrize(("key", "value"), [("precision", "fp16"), ("num_micro_batches", 0)])
def test_an_invalid_value_is_refused_by_its_key(make_linear, key, value):
    with pytest.raises(InputError, match=rf"engine\.{key}"):
        make_linear(**{key: value})


@pytest.fixture
def make_engine(make_model, make_criterion, resolved_config):
    """A function from overrides to the tiny model and its engine, built as in a run: a `Trainer`."""

    def make(*overrides):
        cfg = resolved_config(*overrides)
        model = make_model(*overrides)
        optimizer = instantiate(cfg.optimizer, _convert_="all")(model)
        groups = parameters_by_group(optimizer)
        engine = instantiate(cfg.engine, _convert_="all")(
            model=model, criterion=make_criterion(*overrides), optimizer=optimizer, groups=groups, device=CPU
        )
        return Trainer(engine, model, optimizer, groups)

    return make


class Trainer(NamedTuple):
    engine: DdpEngine
    model: nn.Module
    optimizer: torch.optim.Optimizer
    groups: dict[str, list[nn.Parameter]]


@pytest.fixture
def batch(collate, encoded):
    return collate("packed", encoded)


def backward(trainer, batch):
    """Return the losses, and the gradients by name."""
    losses = trainer.engine(batch)
    trainer.engine.backward(trainer.engine.module.criterion.objective(losses, batch.counts))
    return losses, {name: parameter.grad for name, parameter in trainer.model.named_parameters()}


class FirstStep(NamedTuple):
    """The first step of the default engine in one precision."""

    trainer: Trainer
    weights_before: dict[str, Tensor]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]  # before clipping
    norms: dict[str, float]


@pytest.fixture(scope="module")
def first_steps() -> dict[str, FirstStep]:
    return {}


@pytest.fixture
def first_step(make_engine, batch, first_steps):
    """A function from a precision to its FirstStep, computed once for all tests."""

    def compute(precision):
        if precision not in first_steps:
            trainer = make_engine(f"engine.precision={precision}")
            before = copied_weights(trainer.model)
            losses, gradients = backward(trainer, batch)
            gradients = {name: gradient.clone() for name, gradient in gradients.items()}
            first_steps[precision] = FirstStep(trainer, before, losses, gradients, trainer.engine.step(IDS))
        return first_steps[precision]

    return compute


def copied_weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_infinite_gradient_leaves_every_weight_and_the_optimizers_whole_state(precision, first_step, batch):
    trainer = first_step(precision).trainer
    before = copied_weights(trainer.model)
    states = [value.clone() for state in trainer.optimizer.state.values() for value in state.values()]
    backward(trainer, batch)
    trainer.model.head.box[0].weight.grad[0, 0] = math.inf
    with pytest.raises(InputError, match=r"not finite \(detection, total\)"):
        trainer.engine.step(list(batch.sample_ids))
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
    after = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, states, strict=True))


def test_bf16_keeps_masters_and_moments_in_float32_and_matrices_in_bfloat16(first_step):
    step = first_step("bf16")
    model, states = step.trainer.model, step.trainer.optimizer.state
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {name: gradient.dtype for name, gradient in step.gradients.items()} == dtypes
    in_bfloat16 = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    queries = {"head.query.weight", "head.query_position.weight"}
    assert in_bfloat16 == {name for name in dtypes if model.get_parameter(name).ndim > 1} - queries
    moments = [states[parameter][name] for parameter in model.parameters() for name in ("exp_avg", "exp_avg_sq")]
    assert {moment.dtype for moment in moments} == {torch.float32}
    assert {states[model.get_parameter(name)]["low_bits"].dtype for name in in_bfloat16} == {torch.int16}


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_the_norm_of_bfloat16_gradients_is_computed_in_float32(precision, first_step):
    step = first_step(precision)
    exact = torch.linalg.vector_norm(torch.cat([gradient.double().flatten() for gradient in step.gradients.values()]))
    assert step.norms["total"] == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_a_step_in_bfloat16_moves_every_group(precision, first_step):
    step = first_step(precision)
    before = dict(zip(step.trainer.model.parameters(), step.weights_before.values(), strict=True))
    for name, group in step.trainer.groups.items():
        assert any(not torch.equal(parameter, before[parameter]) for parameter in group), name


def test_bf16_gives_losses_near_those_of_fp32(first_step):
    losses, expected = first_step("bf16").losses, first_step("fp32").losses
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=0.02
    )
    assert losses["student_lm"] != expected["student_lm"]


@pytest.mark.parametrize("choice", ["selective", "full"])
def test_gradient_checkpointing_gives_the_same_gradients(choice, make_engine, batch, first_step):
    losses, gradients = backward(make_engine(f"engine.gradient_checkpointing={choice}"), batch)
    torch.testing.assert_close(losses, first_step("fp32").losses)
    torch.testing.assert_close(gradients, first_step("fp32").gradients)


def count_runs_of_blocks(trainer, batch) -> int:
    """Count how often two blocks, one of each tower, run in a forward and a backward pass."""
    runs, backbone = [], trainer.model.backbone.model
    for block in (backbone.visual.blocks[0], backbone.language_model.layers[0]):
        block.mlp.register_forward_pre_hook(lambda module, _: runs.append(module))
    backward(trainer, batch)
    return len(runs)


def test_full_gradient_checkpointing_recomputes_each_block(make_engine, batch):
    assert count_runs_of_blocks(make_engine("engine.gradient_checkpointing=none"), batch) == 2
    assert count_runs_of_blocks(make_engine("engine.gradient_checkpointing=full"), batch) == 4


class CountedOperators(TorchDispatchMode):
    """Counts how often each operator of torch runs."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.overloadpacket] += 1
        return function(*args, **kwargs or {})


def test_selective_gradient_checkpointing_recomputes_activations_but_no_product_and_no_attention(make_engine, batch):
    counts = {}
    for choice in ("none", "selective"):
        trainer = make_engine(f"engine.gradient_checkpointing={choice}", "head=none", "loss=language")
        with CountedOperators() as counted:
            backward(trainer, batch)
        counts[choice] = counted.count
    aten = torch.ops.aten
    config = trainer.model.backbone.config
    num_blocks = config.text_config.num_hidden_layers + config.vision_config.depth
    assert counts["selective"][aten.silu] == counts["none"][aten.silu] + num_blocks
    for expensive in (aten.mm, aten.addmm, aten.bmm, aten._scaled_dot_product_flash_attention_for_cpu):
        assert counts["selective"][expensive] == counts["none"][expensive]


def test_an_unknown_gradient_checkpointing_is_refused(make_engine):
    with pytest.raises(InputError, match="engine.gradient_checkpointing=some"):
        make_engine("engine.gradient_checkpointing=some")


def test_full_gradient_checkpointing_recomputes_the_blocks_of_a_pretrained_model_too(
    make_engine, make_model, batch, tmp_path
):
    make_model("head=none").backbone.save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil().save_pretrained(tmp_path)
    pretrained = "model.weights=pretrained", f"model.checkpoint={tmp_path}"
    assert count_runs_of_blocks(make_engine(*pretrained, "engine.gradient_checkpointing=full"), batch) == 4


@pytest.mark.parametrize("frozen", ["vision", "merger", "llm", "adapter", "detection"])
def test_a_frozen_group_has_no_gradient_and_the_others_keep_theirs(frozen, make_engine, batch, first_step):
    expected = first_step("fp32").gradients
    trainer = make_engine(f"optimizer.groups.{frozen}.lr=0")
    members = {id(parameter) for group in trainer.groups.values() for parameter in group}
    _, gradients = backward(trainer, batch)
    trained = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in members}
    assert frozen not in trainer.groups
    assert {name for name, gradient in gradients.items() if gradient is not None} == trained
    torch.testing.assert_close({n: gradients[n] for n in trained}, {n: expected[n] for n in trained})


def test_a_frozen_group_keeps_its_weights_and_has_no_moments(make_engine, batch):
    trainer = make_engine("optimizer.groups.llm.lr=0")
    before = copied_weights(trainer.model)
    backward(trainer, batch)
    trainer.engine.step(IDS)
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    frozen = {name for name in before if "language_model" in name or "lm_head" in name}
    assert frozen
    assert moved.isdisjoint(frozen)
    assert not any(trainer.model.get_parameter(name) in trainer.optimizer.state for name in frozen)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(("frozen", "trained"), [("llm", ("vision", "merger")), ("vision", ("merger",))])
def test_language_gradients_pass_through_a_frozen_group(frozen, trained, checkpointing, make_engine, batch):
    trainer = make_engine(
        "head=none",
        "loss=language",
        f"optimizer.groups.{frozen}.lr=0",
        f"engine.gradient_checkpointing={checkpointing}",
    )
    backward(trainer, batch)
    norms = trainer.engine.step(IDS)
    assert all(norms[name] > 0 for name in trained)
