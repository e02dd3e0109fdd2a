"""Forward, backward and update of one step in one process."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.engine.ddp import DdpEngine
from bbu_train.errors import InputError
from bbu_train.optimizer.groups import parameters_by_group

CPU = torch.device("cpu")
IDS = ["train.jsonl:3", "train.jsonl:7"]


def plain(model, optimizer, groups, **changes) -> DdpEngine:
    settings = {"precision": "fp32", "num_micro_batches": 1, "gradient_checkpointing": "none", "max_grad_norm": None}
    return DdpEngine(model, None, optimizer, groups, CPU, **settings | changes)


@pytest.fixture
def lines():
    """A function to an engine with two groups, (3, 4) and (12): their gradient is what the objective multiplies."""

    def make(**changes):
        model = nn.ParameterDict({"first": torch.zeros(2), "second": torch.zeros(1)})
        groups = {name: [parameter] for name, parameter in model.items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)  # a step subtracts the gradient
        return model, plain(model, optimizer, groups, **changes)

    return make


def objective(model):
    return (model["first"] * torch.tensor([3.0, 4.0])).sum() + 12 * model["second"].sum()


def test_the_norms_are_those_of_each_group_and_of_all_before_clipping(lines):
    model, engine = lines(max_grad_norm=0.1)
    engine.backward(objective(model))
    assert engine.step(IDS) == pytest.approx({"first": 5, "second": 12, "total": 13})


def test_clipping_scales_all_groups_together(lines):
    model, engine = lines(max_grad_norm=6.5)
    engine.backward(objective(model))
    engine.step(IDS)
    assert model["first"].tolist() == pytest.approx([-1.5, -2])
    assert model["second"].tolist() == pytest.approx([-6])


def test_a_gradient_within_the_limit_is_not_clipped(lines):
    model, engine = lines(max_grad_norm=13.5)
    engine.backward(objective(model))
    engine.step(IDS)
    assert model["second"].item() == -12


def test_without_a_limit_nothing_is_clipped(lines):
    model, engine = lines(max_grad_norm=None)
    engine.backward(1e6 * objective(model))
    engine.step(IDS)
    assert model["second"].item() == -12e6


def test_micro_batches_add_up_and_a_step_begins_anew(lines):
    model, engine = lines()
    for _ in range(2):
        engine.backward(objective(model))
    assert engine.step(IDS)["total"] == pytest.approx(26)
    engine.backward(objective(model))
    assert engine.step(IDS)["total"] == pytest.approx(13)


def test_a_group_that_no_loss_reaches_has_norm_0(lines):
    model, engine = lines(max_grad_norm=1.0)
    engine.backward(model["second"].sum())
    assert engine.step(IDS) == {"first": 0, "second": 1, "total": 1}
    assert model["first"].tolist() == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("culprit", ["objective", "first"])
def test_a_step_that_is_not_finite_changes_no_weight_and_names_its_samples(lines, value, culprit):
    model, engine = lines(max_grad_norm=1.0)
    engine.backward(objective(model) + (value if culprit == "objective" else 0))
    if culprit == "first":
        model["first"].grad[1] = value
    with pytest.raises(InputError, match=rf"not finite \(.*{culprit}.*\).*{IDS[0]}, {IDS[1]}"):
        engine.step(IDS)
    assert [parameter.tolist() for parameter in model.values()] == [[0, 0], [0]]
    assert {parameter.grad for parameter in model.parameters()} == {None}


def test_a_refused_step_leaves_nothing_to_the_next(lines):
    model, engine = lines()
    engine.backward(objective(model) * math.nan)
    with pytest.raises(InputError):
        engine.step(IDS)
    engine.backward(objective(model))
    assert engine.step(IDS)["total"] == pytest.approx(13)


@pytest.mark.parametrize("changes", [{"precision": "fp16"}, {"num_micro_batches": 0}])
def test_a_value_that_makes_no_sense_names_its_key(lines, changes):
    (key,) = changes
    with pytest.raises(InputError, match=rf"engine\.{key}"):
        lines(**changes)


@pytest.fixture
def make_engine(make_model, make_criterion, config):
    """A function from overrides to the tiny model's engine as a run builds it, with `model` beside it."""

    def make(*overrides):
        cfg = config(*overrides)
        model = make_model(*overrides)
        optimizer = instantiate(cfg.optimizer, _convert_="all")(model)
        groups = parameters_by_group(optimizer)
        engine = instantiate(cfg.engine, _convert_="all")(
            model=model, criterion=make_criterion(*overrides), optimizer=optimizer, groups=groups, device=CPU
        )
        return SimpleNamespace(engine=engine, model=model, optimizer=optimizer, groups=groups)

    return make


@pytest.fixture
def batch(collate, encoded):
    return collate("packed", encoded)


def backward(made, batch):
    """The losses, and the gradients by name."""
    losses = made.engine(batch)
    made.engine.backward(made.engine.module.criterion.objective(losses, batch.counts))
    return losses, {name: parameter.grad for name, parameter in made.model.named_parameters()}


def test_one_infinite_gradient_leaves_every_weight_and_moment_of_the_model(make_engine, batch):
    made = make_engine()
    backward(made, batch)
    made.engine.step(IDS)
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    moments = [state["exp_avg"].clone() for state in made.optimizer.state.values()]
    backward(made, batch)
    made.model.head.box[0].weight.grad[0, 0] = math.inf
    with pytest.raises(InputError, match=r"not finite \(detection, total\)"):
        made.engine.step(list(batch.sample_ids))
    assert all(torch.equal(parameter, before[name]) for name, parameter in made.model.named_parameters())
    after = [state["exp_avg"] for state in made.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))


def test_bf16_keeps_masters_and_moments_in_float32_and_matrices_ready_for_products(make_engine, batch):
    made = make_engine("engine.precision=bf16")
    _, gradients = backward(made, batch)
    dtypes = {name: parameter.dtype for name, parameter in made.model.named_parameters()}
    assert {name: gradient.dtype for name, gradient in gradients.items()} == dtypes
    low = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    queries = {"head.query.weight", "head.query_position.weight"}
    assert low == {name for name in dtypes if made.model.get_parameter(name).ndim > 1} - queries
    made.engine.step(IDS)
    states = [made.optimizer.state[parameter] for parameter in made.model.parameters()]
    assert {state[moment].dtype for state in states for moment in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert {made.optimizer.state[made.model.get_parameter(name)]["low_bits"].dtype for name in low} == {torch.int16}


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_the_norm_of_bfloat16_gradients_is_taken_in_float32(precision, make_engine, batch):
    made = make_engine(f"engine.precision={precision}")
    _, gradients = backward(made, batch)
    exact = torch.linalg.vector_norm(torch.cat([gradient.double().flatten() for gradient in gradients.values()]))
    assert made.engine.step(IDS)["total"] == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_a_step_in_bfloat16_moves_every_group(precision, make_engine, batch):
    made = make_engine(f"engine.precision={precision}")
    before = {name: [p.detach().clone() for p in its] for name, its in made.groups.items()}
    backward(made, batch)
    made.engine.step(IDS)
    for name, parameters in made.groups.items():
        assert any(not torch.equal(p, b) for p, b in zip(parameters, before[name], strict=True)), name


def test_bf16_gives_losses_near_those_of_fp32(make_engine, batch):
    losses, _ = backward(make_engine("engine.precision=bf16"), batch)
    expected, _ = backward(make_engine("engine.precision=fp32"), batch)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=0.02
    )
    assert losses["student_lm"] != expected["student_lm"]


@pytest.mark.parametrize("choice", ["selective", "full"])
def test_gradient_checkpointing_gives_the_same_gradients(choice, make_engine, batch):
    losses, gradients = backward(make_engine(f"engine.gradient_checkpointing={choice}"), batch)
    expected_losses, expected = backward(make_engine(), batch)
    torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(gradients, expected)


def count_runs_of_blocks(made, batch) -> int:
    """How often two blocks, one of each tower, run in a forward and a backward pass."""
    runs, backbone = [], made.model.backbone.model
    for block in (backbone.visual.blocks[0], backbone.language_model.layers[0]):
        block.mlp.register_forward_pre_hook(lambda module, _: runs.append(module))
    backward(made, batch)
    return len(runs)


def test_full_gradient_checkpointing_computes_each_block_again(make_engine, batch):
    assert count_runs_of_blocks(make_engine("engine.gradient_checkpointing=none"), batch) == 2
    assert count_runs_of_blocks(make_engine("engine.gradient_checkpointing=full"), batch) == 4


class CountedOperators(TorchDispatchMode):
    """How often each operator of torch has run."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.overloadpacket] += 1
        return function(*args, **kwargs or {})


def test_selective_gradient_checkpointing_repeats_activations_but_no_product_and_no_attention(make_engine, batch):
    counts = {}
    for choice in ("none", "selective"):
        made = make_engine(f"engine.gradient_checkpointing={choice}", "head=none", "loss=language")
        with CountedOperators() as counted:
            backward(made, batch)
        counts[choice] = counted.count
    aten = torch.ops.aten
    blocks = made.model.backbone.config
    num_blocks = blocks.text_config.num_hidden_layers + blocks.vision_config.depth
    assert counts["selective"][aten.silu] == counts["none"][aten.silu] + num_blocks
    for dear in (aten.mm, aten.addmm, aten.bmm, aten._scaled_dot_product_flash_attention_for_cpu):
        assert counts["selective"][dear] == counts["none"][dear]


def test_an_unknown_choice_of_gradient_checkpointing_is_refused(make_engine):
    with pytest.raises(InputError, match="engine.gradient_checkpointing=some"):
        make_engine("engine.gradient_checkpointing=some")


def test_the_blocks_of_a_pretrained_model_are_computed_again_too(make_engine, make_model, batch, tmp_path):
    make_model("head=none").backbone.save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil().save_pretrained(tmp_path)
    made = make_engine("model.weights=pretrained", f"model.checkpoint={tmp_path}", "engine.gradient_checkpointing=full")
    assert count_runs_of_blocks(made, batch) == 4


@pytest.mark.parametrize("frozen", ["vision", "merger", "llm", "adapter", "detection"])
def test_a_frozen_group_has_no_gradient_and_the_others_keep_theirs(frozen, make_engine, batch):
    _, expected = backward(make_engine(), batch)
    made = make_engine(f"optimizer.groups.{frozen}.lr=0")
    members = {id(parameter) for its in made.groups.values() for parameter in its}
    _, gradients = backward(made, batch)
    trained = {name for name, parameter in made.model.named_parameters() if id(parameter) in members}
    assert frozen not in made.groups
    assert {name for name, gradient in gradients.items() if gradient is not None} == trained
    torch.testing.assert_close({n: gradients[n] for n in trained}, {n: expected[n] for n in trained})


def test_a_frozen_group_keeps_its_weights_and_has_no_moments(make_engine, batch):
    made = make_engine("optimizer.groups.llm.lr=0")
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    backward(made, batch)
    made.engine.step(IDS)
    moved = {name for name, parameter in made.model.named_parameters() if not torch.equal(parameter, before[name])}
    frozen = {name for name in before if "language_model" in name or "lm_head" in name}
    assert frozen
    assert moved.isdisjoint(frozen)
    assert not any(made.model.get_parameter(name) in made.optimizer.state for name in frozen)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(("frozen", "trained"), [("llm", ("vision", "merger")), ("vision", ("merger",))])
def test_language_gradients_pass_through_a_frozen_group(frozen, trained, checkpointing, make_engine, batch):
    made = make_engine(
        "head=none",
        "loss=language",
        f"optimizer.groups.{frozen}.lr=0",
        f"engine.gradient_checkpointing={checkpointing}",
    )
    backward(made, batch)
    norms = made.engine.step(IDS)
    assert all(norms[name] > 0 for name in trained)
