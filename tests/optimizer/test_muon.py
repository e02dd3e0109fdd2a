"""Muon, compared with torch.optim.Muon, and what it adds: masters, gradient scale, refused steps."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from bbu_train.cli import overrides
from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32
from bbu_train.optimizer import muon
from bbu_train.optimizer.groups import learning_rates, set_learning_rates, state_bytes
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.optimizer.newton_schulz import NewtonSchulz
from bbu_train.runtime.seeds import generator

CONF = Path(__file__).parents[2] / "conf"
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}
SHAPES = [(48, 64), (64, 48), (48, 64), (40, 8)]
DECAY = 0.1


def random_normal(*name, shape, scale=1.0):
    return torch.from_numpy(generator("muon", *name).standard_normal(shape, dtype="float32") * scale)


def matrices(dtype=torch.float32):
    """Return parameters of `dtype` whose values are exact in bfloat16, as those of the gradients are."""
    return [nn.Parameter(random_normal(i, *s, shape=s).bfloat16().to(dtype)) for i, s in enumerate(SHAPES)]


def biases():
    return [nn.Parameter(random_normal("bias", shape=16))]


def make_optimizer(for_muon, for_adamw=(), lr=1e-2):
    groups = [{"params": for_muon, "lr": lr, "weight_decay": DECAY, "name": "all", "momentum": 0.9}]
    if for_adamw:
        groups.append({"params": list(for_adamw), "lr": lr, "weight_decay": DECAY, "name": "all"})
    return muon.Muon(groups, has_masters=True, **ADAMW)


def train(optimizer, parameters, num_steps=4, first=0, scale=1.0):
    for step in range(first, first + num_steps):
        for i, parameter in enumerate(parameters):
            gradient = random_normal("gradient", step, i, shape=tuple(parameter.shape)).bfloat16()
            parameter.grad = (scale * gradient).to(parameter.dtype)
        optimizer.step()


def tensors(optimizer, parameters):
    state = [value for p in parameters for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
    return [*(p.detach() for p in parameters), *state]


def are_equal(one, other):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_weights_move_as_with_torchs_muon():
    actual, expected, initial = matrices(), matrices(), matrices()
    train(make_optimizer(actual), actual)
    settings = {"lr": 1e-2, "momentum": 0.9, "weight_decay": DECAY, "adjust_lr_fn": "match_rms_adamw"}
    train(torch.optim.Muon(expected, **settings), expected)
    for one, other, start in zip(actual, expected, initial, strict=True):
        moved = (other - start).norm()
        assert (one - other).norm() < 0.02 * moved  # torch iterates in bfloat16, whose relative error is 2^-8


def test_masters_of_bfloat16_matrices_equal_float32_weights():
    bf16, fp32 = matrices(torch.bfloat16), matrices()
    optimizer = make_optimizer(bf16)
    train(optimizer, bf16)
    train(make_optimizer(fp32), fp32)
    for parameter, expected in zip(bf16, fp32, strict=True):
        assert torch.equal(merge_float32(parameter.detach(), optimizer.state[parameter]["low_bits"]), expected)
        assert torch.equal(parameter, expected.bfloat16())


def test_other_parameters_are_updated_as_without_muon():
    actual, expected = biases(), biases()
    for_muon = matrices()
    train(make_optimizer(for_muon, actual), [*actual, *for_muon])
    group = {"params": expected, "lr": 1e-2, "weight_decay": DECAY, "name": "all"}
    train(MixedAdamW([group], has_masters=True, **ADAMW), expected)
    assert are_equal(actual, expected)


def test_the_batch_size_of_an_update_does_not_matter(monkeypatch):
    together, apart = matrices(), matrices()
    train(make_optimizer(together), together)
    monkeypatch.setattr(muon, "MAX_BATCH_ELEMENTS", 1)
    train(make_optimizer(apart), apart)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_orthogonalize_brings_all_singular_values_near_1():
    x = random_normal("orthogonal", shape=(3, 24, 64))
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    assert (s / torch.linalg.matrix_norm(x)[:, None]).min() > 0.01
    NewtonSchulz([x.shape], x.device).orthogonalize_(x)
    along = u.mT @ x @ vh.mT
    assert along.diagonal(dim1=1, dim2=2).min() > 0.65
    assert along.diagonal(dim1=1, dim2=2).max() < 1.25
    assert (along - torch.diag_embed(along.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


def test_gradients_are_divided_by_the_scale_on_the_device():
    actual, expected = matrices(), matrices()
    optimizer, other = make_optimizer(actual), make_optimizer(expected)
    for step, scale in enumerate((1.0, 4.0, 2.0)):  # a common factor would change no direction
        optimizer.grad_scale = torch.tensor(scale)
        train(optimizer, actual, num_steps=1, first=step, scale=scale)
        train(other, expected, num_steps=1, first=step)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_refused_step_changes_nothing():
    parameters = matrices(torch.bfloat16)
    optimizer = make_optimizer(parameters)
    train(optimizer, parameters)
    before = [x.clone() for x in tensors(optimizer, parameters)]
    optimizer.found_inf = torch.ones(())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    assert are_equal(tensors(optimizer, parameters), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_from_a_saved_state_continues_bit_for_bit(dtype):
    original, resumed = [*matrices(dtype), *biases()], [*matrices(dtype), *biases()]
    optimizer, other = (make_optimizer(x[:-1], x[-1:]) for x in (original, resumed))
    train(optimizer, original, num_steps=3)
    other.load_state_dict(optimizer.state_dict())
    for parameter, trained in zip(resumed, original, strict=True):
        parameter.data.copy_(trained)
    for one, parameters in ((optimizer, original), (other, resumed)):
        train(one, parameters, num_steps=2, first=3)
    assert are_equal(tensors(optimizer, original), tensors(other, resumed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_bytes_predicts_the_size_of_the_state(dtype):
    parameters = [*matrices(dtype), *biases()]
    optimizer = make_optimizer(parameters[:-1], parameters[-1:])
    expected = state_bytes(optimizer)
    train(optimizer, parameters)
    kept = [value for p in parameters for name, value in optimizer.state[p].items() if name != "step"]
    assert sum(value.nbytes for value in kept) == expected


class Layers(nn.Module):
    """A model with the module names that the patterns in conf/ look for."""

    def __init__(self):
        super().__init__()
        block = nn.ModuleDict({"mlp": nn.Linear(8, 8), "norm": nn.LayerNorm(8)})
        text = nn.ModuleDict({"embed_tokens": nn.Embedding(4, 8), "layers": nn.ModuleList([block])})
        visual = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(8, 8)]), "merger": nn.Linear(8, 8)})
        self.backbone = nn.ModuleDict({"model": nn.ModuleDict({"visual": visual, "language_model": text})})
        self.head = None


def arguments(**changes):
    """Return the arguments in conf/optimizer/muon.yaml, with changes."""
    with initialize_config_dir(str(CONF), version_base=overrides.VERSION_BASE):
        cfg = compose("config", ["optimizer=muon", "engine.precision=fp32"])
    config = OmegaConf.to_container(cfg.optimizer, resolve=True)
    return {key: value for key, value in config.items() if not key.startswith("_")} | changes


def test_the_yaml_gives_muon_the_matrices_of_the_layers_and_nothing_else():
    model = Layers()
    optimizer = muon.build(model, **arguments())
    for_muon = {p for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if parameter in for_muon}
    prefix = "backbone.model"
    assert names == {f"{prefix}.visual.blocks.0.weight", f"{prefix}.language_model.layers.0.mlp.weight"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_the_schedule_sets_the_rate_of_both_parts_of_a_group():
    optimizer = muon.build(Layers(), **arguments())
    rates = learning_rates(optimizer)
    set_learning_rates(optimizer, 0.5)
    assert learning_rates(optimizer) == {name: rate / 2 for name, rate in rates.items()}
    assert all(group["lr"] == group["initial_lr"] / 2 for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "pure_bf16"}, "engine.precision=bf16"),
        ({"momentum": 1.0}, "optimizer.momentum is 1.0"),
        ({"matrices": "("}, "not a regular expression"),
        ({"matrices": "norm"}, "no trained matrix has it in its name"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        muon.build(Layers(), **arguments(**changes))
