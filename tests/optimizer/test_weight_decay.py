"""Weights decay by rate times decay, however small that is beside a rounding step of float32."""

from itertools import product

import pytest
import torch
from torch import nn

from bbu_train.ops.split_float32 import merge_float32
from bbu_train.optimizer import float32_update
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.optimizer.muon import Muon
from bbu_train.runtime.seeds import generator

ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}
SHAPE = 256, 64, 64  # of a million weights: Muon updates them as 256 matrices
DECAY = 0.01
LARGE, SMALL = (1e-2, 1e-4), (1e-6, 1e-7, 1e-8, 1e-9)  # rate times decay


def random_normal(*name, shape):
    return torch.from_numpy(generator("weight decay", *name).standard_normal(shape, dtype="float32"))


def make(name, weights, lr=1e-3, decay=DECAY):
    """Return parameters with these weights, and the optimizer of this name over them."""
    dtype = torch.float32 if name in ("float32", "muon") else torch.bfloat16
    parameters = [nn.Parameter(weight.to(dtype, copy=True)) for weight in weights]
    group = {"params": parameters, "lr": lr, "weight_decay": decay, "name": "all"}
    if name == "muon":
        return parameters, Muon([group | {"momentum": 0.95}], has_masters=True, **ADAMW)
    return parameters, MixedAdamW([group], has_masters=name != "pure_bf16", **ADAMW)


def take_step(parameters, optimizer, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.to(parameter)
    optimizer.step()


def exact_weights(parameters, optimizer):
    """Return the weights or, where there are masters, the masters, in float64."""
    low_bits = [optimizer.state[parameter].get("low_bits") for parameter in parameters]
    weights = [parameter.detach() for parameter in parameters]
    pairs = zip(weights, low_bits, strict=True)
    return [(weight if bits is None else merge_float32(weight, bits)).double() for weight, bits in pairs]


@pytest.fixture(scope="module")
def trained():
    """Return for each optimizer a million weights of a usual size, its state after one step, and another gradient."""
    weights, first, second = (random_normal(i, shape=SHAPE) for i in range(3))

    def train(name):
        split = (lambda x: x.unbind()) if name == "muon" else (lambda x: [x])
        parameters, optimizer = make(name, split(0.02 * weights))
        take_step(parameters, optimizer, split(first))
        return parameters, optimizer.state_dict(), split(second)

    return {name: train(name) for name in ("float32", "bf16", "muon", "pure_bf16")}


def step_from(trained, name, device, lr, decay):
    """Return the weights before and after a step."""
    weights, state, gradients = trained[name]
    parameters, optimizer = make(name, [weight.detach().to(device) for weight in weights])
    optimizer.load_state_dict(state)
    optimizer.param_groups[0] |= {"lr": lr, "weight_decay": decay}
    before = torch.cat(exact_weights(parameters, optimizer))
    take_step(parameters, optimizer, gradients)
    return before.flatten(), torch.cat(exact_weights(parameters, optimizer)).flatten()


no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=no_gpu)])
@pytest.mark.parametrize(
    ("name", "rate_times_decay"),
    # With stochastic rounding to bfloat16, a million weights are too few to see a smaller decay in.
    [*product(("float32", "bf16", "muon"), (*LARGE, *SMALL)), *product(["pure_bf16"], LARGE)],
)
def test_a_million_weights_decay_on_average_by_rate_times_decay(trained, name, rate_times_decay, device):
    """The updates have the size of the rate. Decay is the difference that it makes to a step."""
    lr = rate_times_decay / DECAY
    before, decayed = step_from(trained, name, device, lr, DECAY)
    _, expected = step_from(trained, name, device, lr, 0.0)
    mean_decay = torch.dot(before, expected - decayed) / before.square().sum()
    assert mean_decay.item() == pytest.approx(rate_times_decay, rel=0.1)


@pytest.mark.parametrize("name", ["float32", "bf16"])
def test_many_steps_equal_those_of_torchs_adamw_in_float64(name):
    num_steps, shapes = 100, [(40, 30), (7,)]
    parameters, optimizer = make(name, [random_normal(*shape, shape=shape).bfloat16() for shape in shapes], decay=0.1)
    exact = [nn.Parameter(parameter.detach().double()) for parameter in parameters]
    reference = torch.optim.AdamW(exact, lr=1e-3, weight_decay=0.1, **ADAMW)
    for step in range(num_steps):
        gradients = [random_normal("gradient", step, *shape, shape=shape).bfloat16() for shape in shapes]
        take_step(parameters, optimizer, gradients)
        take_step(exact, reference, gradients)
    for actual, expected in zip(exact_weights(parameters, optimizer), exact, strict=True):
        half_unit = 2**-24 * expected.abs().max().item()
        torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=2 * num_steps * half_unit)


def test_the_size_of_a_bucket_makes_no_difference(monkeypatch):
    shapes = [(30, 20), (64,), (5, 5), (1,), (8, 8)]
    results = []
    for size in (64, 1 << 18):
        monkeypatch.setitem(float32_update.BUCKET_ELEMENTS, "cpu", size)
        parameters, optimizer = make("float32", [random_normal(*shape, shape=shape) for shape in shapes])
        for step in range(3):
            gradients = [random_normal("gradient", step, *shape, shape=shape) for shape in shapes]
            take_step(parameters, optimizer, gradients)
        results.append([x for p in parameters for x in (p, *optimizer.state[p].values())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
