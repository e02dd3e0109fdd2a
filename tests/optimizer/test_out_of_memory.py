"""A step that runs out of memory has moved nothing, wherever that happens, and can be repeated."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bbu_train.average.ema import ExponentialMovingAverage
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.optimizer.muon import Muon
from bbu_train.runtime.seeds import generator

SHAPES = [(12, 8), (8, 12), (12, 8), (8,)]
SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8}
KINDS = ["adamw", "masters", "pure_bf16", "muon", "muon with masters"]


class LimitedMemory(TorchDispatchMode):
    """Lets `num_allocations` operators return memory of their own; the next one raises that there is none."""

    def __init__(self, num_allocations):
        super().__init__()
        self.num_left = num_allocations

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        given = {storage_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        if any(storage_of(x) not in given for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.numel()):
            if self.num_left == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
            self.num_left -= 1
        return result


def storage_of(tensor):
    return tensor.untyped_storage().data_ptr()


def update_in_place(weight, low_bits, exp_avg, exp_avg_sq, gradient, scalars, grad_scale, found_inf, salt):
    """Take the place of the kernel, which allocates nothing either; `mixed_adamw.update` does, on a CPU."""
    weight.add_(gradient).mul_(scalars[7])
    exp_avg.add_(gradient)
    exp_avg_sq.sub_(gradient)
    if low_bits is not None:
        low_bits.add_(1)


def make(kind):
    dtype = torch.float32 if kind in ("adamw", "muon") else torch.bfloat16
    model = nn.ParameterDict(
        {str(i): torch.from_numpy(normal("weight", i, shape)).to(dtype) for i, shape in enumerate(SHAPES)}
    )
    *matrices, bias = model.values()
    bias.data = bias.data.float()
    settings = {"lr": 0.1, "weight_decay": 0.1, "name": "all"}
    groups = [{"params": matrices, **settings}, {"params": [bias], **settings | {"weight_decay": 0.0}}]
    if kind.startswith("muon"):
        groups[0]["momentum"] = 0.9
    optimizer = (Muon if kind.startswith("muon") else MixedAdamW)(groups, has_masters=kind != "pure_bf16", **SETTINGS)
    optimizer.update = update_in_place
    return model, optimizer, ExponentialMovingAverage(model, optimizer, 0.9, 1000)


def normal(name, i, shape):
    return generator("out of memory", name, i).standard_normal(shape, dtype="float32")


def set_gradients(model):
    for i, parameter in enumerate(model.values()):
        parameter.grad = torch.from_numpy(normal("gradient", i, tuple(parameter.shape))).to(parameter.dtype)


def everything(model, optimizer, average):
    states = [value for p in model.values() for value in (p.detach(), p.grad, *optimizer.state[p].values())]
    return [
        *(None if value is None else value.clone() for value in states),
        *map(torch.clone, average.averages.values()),
    ]


def are_equal(some, others):
    return all(one is other or torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_allocates_before_it_writes_and_a_failed_one_has_moved_nothing(kind):
    run, undisturbed = make(kind), make(kind)
    for model, optimizer, _ in (run, undisturbed):
        optimizer.allocate()
        set_gradients(model)
    undisturbed[1].step()
    model, optimizer, _ = run
    before, num_failures, is_done = everything(*run), 0, False
    while not is_done:
        try:
            with LimitedMemory(num_failures):
                optimizer.step()
            is_done = True
        except torch.OutOfMemoryError:
            num_failures += 1
            assert optimizer.num_updates == 0
            assert are_equal(everything(*run), before)
    assert num_failures > 0
    assert optimizer.num_updates == 1
    assert are_equal(everything(*run), everything(*undisturbed))
    assert not are_equal(everything(*run), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_is_updated_without_any_memory_of_its_own(kind):
    model, optimizer, average = make(kind)
    set_gradients(model)
    optimizer.step()
    before = everything(model, optimizer, average)
    with LimitedMemory(0):
        average.update(1)
    assert not are_equal(everything(model, optimizer, average), before)


def test_a_saved_state_is_loaded_into_the_memory_that_is_there():
    model, optimizer, _ = make("muon with masters")
    set_gradients(model)
    optimizer.step()
    _, other, _ = make("muon with masters")
    other.allocate()
    saved = optimizer.state_dict()
    with LimitedMemory(0):
        other.load_state_dict(saved)
    states = ([value for state in each.state.values() for value in state.values()] for each in (optimizer, other))
    assert are_equal(*states)
