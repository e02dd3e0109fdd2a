"""Muon compared with torch's own, and what it adds to it."""

from copy import deepcopy
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
from bbu_train.runtime.seeds import generator

CONF = Path(__file__).parents[2] / "conf"
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}
SHAPES = [(48, 64), (64, 48), (48, 64), (40, 8)]
DECAY = 0.1


def numbers(*name, shape, scale=1.0):
    return torch.from_numpy(generator("muon", *name).standard_normal(shape, dtype="float32") * scale)


def matrices(dtype=torch.float32):
    """Parameters and gradients are bfloat16 numbers, whatever they are kept in."""
    return [nn.Parameter(numbers(i, *s, shape=s).bfloat16().to(dtype)) for i, s in enumerate(SHAPES)]


def biases():
    return [nn.Parameter(numbers("bias", shape=16))]


def optimizer_of(its, others=(), lr=1e-2):
    groups = [{"params": its, "lr": lr, "weight_decay": DECAY, "name": "all", "momentum": 0.9}]
    if others:
        groups.append({"params": list(others), "lr": lr, "weight_decay": DECAY, "name": "all"})
    return muon.Muon(groups, masters=True, **ADAMW)


def train(optimizer, parameters, num_steps=4, first=0, scale=1.0):
    for step in range(first, first + num_steps):
        for i, parameter in enumerate(parameters):
            gradient = numbers("gradient", step, i, shape=tuple(parameter.shape)).bfloat16()
            parameter.grad = (scale * gradient).to(parameter.dtype)
        optimizer.step()


def tensors(optimizer, parameters):
    kept = [value for p in parameters for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
    return [*(p.detach() for p in parameters), *kept]


def same(one, other):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_weights_go_where_torchs_muon_takes_them():
    found, expected, before = matrices(), matrices(), matrices()
    train(optimizer_of(found), found)
    settings = {"lr": 1e-2, "momentum": 0.9, "weight_decay": DECAY, "adjust_lr_fn": "match_rms_adamw"}
    train(torch.optim.Muon(expected, **settings), expected)
    for its, other, start in zip(found, expected, before, strict=True):
        moved = (other - start).norm()
        assert (its - other).norm() < 0.02 * moved  # torch iterates in bfloat16: 2^-8 of a number


def test_bfloat16_matrices_have_masters_that_go_where_float32_ones_do():
    low, full = matrices(torch.bfloat16), matrices()
    optimizer = optimizer_of(low)
    train(optimizer, low)
    train(optimizer_of(full), full)
    for parameter, expected in zip(low, full, strict=True):
        assert torch.equal(merge_float32(parameter.detach(), optimizer.state[parameter]["low_bits"]), expected)
        assert torch.equal(parameter, expected.bfloat16())


def test_the_others_are_updated_as_without_muon():
    found, expected = biases(), biases()
    its = matrices()
    train(optimizer_of(its, found), [*found, *its])
    group = {"params": expected, "lr": 1e-2, "weight_decay": DECAY, "name": "all"}
    train(MixedAdamW([group], masters=True, **ADAMW), expected)
    assert same(found, expected)


def test_how_many_are_updated_together_does_not_matter(monkeypatch):
    together, apart = matrices(), matrices()
    train(optimizer_of(together), together)
    monkeypatch.setattr(muon, "MOST_AT_ONCE", 1)
    train(optimizer_of(apart), apart)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_all_directions_of_a_matrix_become_as_large():
    x = numbers("orthogonal", shape=(3, 24, 64))
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    assert (s / torch.linalg.matrix_norm(x)[:, None]).min() > 0.01
    along = u.mT @ muon.orthogonalized(x) @ vh.mT
    assert along.diagonal(dim1=1, dim2=2).min() > 0.65
    assert along.diagonal(dim1=1, dim2=2).max() < 1.25
    assert (along - torch.diag_embed(along.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


def test_gradients_are_divided_by_the_scale_on_the_device():
    found, expected = matrices(), matrices()
    optimizer, other = optimizer_of(found), optimizer_of(expected)
    for step, scale in enumerate((1.0, 4.0, 2.0)):  # a common factor would change no direction
        optimizer.grad_scale = torch.tensor(scale)
        train(optimizer, found, num_steps=1, first=step, scale=scale)
        train(other, expected, num_steps=1, first=step)
    for one, its in zip(found, expected, strict=True):
        torch.testing.assert_close(one, its)


def test_a_refused_step_changes_no_number():
    its = matrices(torch.bfloat16)
    optimizer = optimizer_of(its)
    train(optimizer, its)
    before = [x.clone() for x in tensors(optimizer, its)]
    optimizer.found_inf = torch.ones(())
    for parameter in its:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    assert same(tensors(optimizer, its), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_bit_for_bit(dtype):
    its, resumed = [*matrices(dtype), *biases()], [*matrices(dtype), *biases()]
    optimizer, other = (optimizer_of(x[:-1], x[-1:]) for x in (its, resumed))
    train(optimizer, its, num_steps=3)
    other.load_state_dict(deepcopy(optimizer.state_dict()))  # torch shares the tensors that it is given
    for parameter, trained in zip(resumed, its, strict=True):
        parameter.data.copy_(trained)
    for one, parameters in ((optimizer, its), (other, resumed)):
        train(one, parameters, num_steps=2, first=3)
    assert same(tensors(optimizer, its), tensors(other, resumed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_the_state_is_known_before_it_is_there(dtype):
    its = [*matrices(dtype), *biases()]
    optimizer = optimizer_of(its[:-1], its[-1:])
    expected = state_bytes(optimizer)
    train(optimizer, its)
    kept = [value for p in its for name, value in optimizer.state[p].items() if name != "step"]
    assert sum(value.nbytes for value in kept) == expected


class Layers(nn.Module):
    """With the names of a backbone that the patterns of conf/ look for."""

    def __init__(self):
        super().__init__()
        block = nn.ModuleDict({"mlp": nn.Linear(8, 8), "norm": nn.LayerNorm(8)})
        text = nn.ModuleDict({"embed_tokens": nn.Embedding(4, 8), "layers": nn.ModuleList([block])})
        visual = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(8, 8)]), "merger": nn.Linear(8, 8)})
        self.backbone = nn.ModuleDict({"model": nn.ModuleDict({"visual": visual, "language_model": text})})
        self.head = None


def arguments(**changes):
    """What conf/optimizer/muon.yaml gives, changed."""
    with initialize_config_dir(str(CONF), version_base=overrides.VERSION_BASE):
        chosen = compose("config", ["optimizer=muon", "engine.precision=fp32"])
    its = OmegaConf.to_container(chosen.optimizer, resolve=True)
    return {key: value for key, value in its.items() if not key.startswith("_")} | changes


def test_the_choice_gives_muon_the_matrices_of_the_layers_and_nothing_else():
    model = Layers()
    optimizer = muon.build(model, **arguments())
    its = {p for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if parameter in its}
    prefix = "backbone.model"
    assert names == {f"{prefix}.visual.blocks.0.weight", f"{prefix}.language_model.layers.0.mlp.weight"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_the_schedule_reaches_both_parts_of_a_group():
    optimizer = muon.build(Layers(), **arguments())
    rates = learning_rates(optimizer)
    set_learning_rates(optimizer, 0.5)
    assert learning_rates(optimizer) == {name: rate / 2 for name, rate in rates.items()}
    assert all(group["lr"] == group["initial_lr"] / 2 for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "pure_bf16"}, "engine.precision=bf16"),
        ({"momentum": 1.0}, "optimizer.momentum is 1.0"),
        ({"matrices": "("}, "not a regular expression"),
        ({"matrices": "norm"}, "the name of no matrix that is trained"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        muon.build(Layers(), **arguments(**changes))
