"""The average of the weights, compared with torch's own, and what of it is evaluated and saved."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bbu_train.average import ema
from bbu_train.average.ema import ExponentialMovingAverage
from bbu_train.average.none import NoAverage
from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32
from bbu_train.optimizer import groups
from bbu_train.runtime.seeds import generator

PRECISIONS = ("fp32", "bf16", "pure_bf16")


def small_model(precision):
    """Two layers, matrices in the dtype of the precision, the first layer's bias frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    for parameter in model.parameters():
        if precision != "fp32" and parameter.ndim == 2:
            parameter.data = parameter.data.bfloat16()
    model[0].bias.requires_grad_(False)
    return model


def trainer(model, precision):
    only = {"all": {"pattern": "", "submodule": "0", "lr": 0.1}}
    return groups.build(model, only, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, precision=precision)


def steps(model, optimizer, first, last):
    """Yields the number of each step after it was made, along the same gradients for everyone."""
    for step in range(first, last + 1):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradient = generator("ema", step, name).standard_normal(tuple(parameter.shape))
                parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)
        optimizer.step()
        yield step


def masters(model, optimizer):
    """The weights in float32, as exactly as they are known."""
    low_bits = {p: state["low_bits"] for p, state in optimizer.state.items() if "low_bits" in state}
    weights = {name: p.detach() for name, p in trainable(model).items()}
    return {
        name: merge_float32(weights[name], low_bits[p]) if p in low_bits else weights[name].float()
        for name, p in trainable(model).items()
    }


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_is_torchs_of_the_float32_weights(precision, decay):
    model = small_model(precision)
    optimizer = trainer(model, precision)
    average = ExponentialMovingAverage(model, optimizer, decay)
    watched = nn.ParameterDict({name.replace(".", "_"): p.detach().float() for name, p in trainable(model).items()})
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(30)]
    torchs = AveragedModel(
        watched, avg_fn=lambda ours, new, number: decays[step] * ours + (1 - decays[step]) * new, use_buffers=False
    )
    torchs.n_averaged += 1  # or it would begin at the first weights it is shown instead of these
    for step in steps(model, optimizer, 1, 12):
        average.update(step)
        for name, weight in masters(model, optimizer).items():
            watched[name.replace(".", "_")].data.copy_(weight)
        torchs.update_parameters(watched)
    for name, expected in torchs.module.items():
        torch.testing.assert_close(average.averages[name.replace("_", ".")], expected.detach())
    assert set(average.averages) == set(trainable(model))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_how_many_are_averaged_together_does_not_matter(precision, monkeypatch):
    found = []
    for most in (ema.MAX_ELEMENTS, 1):
        monkeypatch.setattr(ema, "MAX_ELEMENTS", most)
        model = small_model(precision)
        optimizer = trainer(model, precision)
        average = ExponentialMovingAverage(model, optimizer, 0.9)
        for step in steps(model, optimizer, 1, 5):
            average.update(step)
        found.append(average.averages)
    assert all(torch.equal(found[0][name], other) for name, other in found[1].items())


def test_a_weight_that_was_never_updated_is_averaged_among_others():
    model = small_model("bf16")
    optimizer = trainer(model, "bf16")
    average = ExponentialMovingAverage(model, optimizer, 0.9)
    before = model[0].weight.detach().float()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    optimizer.step()
    average.update(1)
    assert torch.equal(average.averages["0.weight"], before)
    assert not torch.equal(average.averages["1.weight"], model[1].weight.float())


def test_a_short_memory_is_that_of_the_last_ninth_and_decay_is_its_limit():
    model = small_model("fp32")
    average = ExponentialMovingAverage(model, trainer(model, "fp32"), decay=0.6)
    weight = model[1].bias
    expected = weight.detach().clone()
    for step, share in [(1, 2 / 11), (2, 3 / 12), (3, 4 / 13), (1000, 0.6)]:
        weight.data += 1
        average.update(step)
        expected = share * expected + (1 - share) * weight.detach()
        torch.testing.assert_close(average.averages["1.bias"], expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_meanwhile_the_model_has_the_averages_and_afterwards_its_own_weights_bit_for_bit(precision):
    model = small_model(precision)
    optimizer = trainer(model, precision)
    average = ExponentialMovingAverage(model, optimizer, 0.9)
    for step in steps(model, optimizer, 1, 5):
        average.update(step)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state_before = optimizer.state_dict()["state"].keys()
    with pytest.raises(KeyboardInterrupt), average.applied():
        for name, parameter in model.named_parameters():
            expected = average.averages.get(name, before[name])
            assert torch.equal(parameter, expected.to(parameter.dtype))
        assert not torch.equal(model[1].weight, before["1.weight"])
        assert all(torch.equal(average.trained()[name], before[name]) for name in trainable(model))
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert optimizer.state_dict()["state"].keys() == state_before


def test_what_is_saved_is_every_weight_once_and_the_averages_of_those_that_are_trained():
    model = small_model("bf16")
    optimizer = trainer(model, "bf16")
    average = ExponentialMovingAverage(model, optimizer, 0.9)
    for step in steps(model, optimizer, 1, 3):
        average.update(step)
    weights = average.weights()
    assert list(weights) == [name for name, _ in model.named_parameters()]
    assert torch.equal(weights["0.bias"], model[0].bias)
    assert all(torch.equal(weights[name], its) and its.dtype == torch.float32 for name, its in average.averages.items())
    assert {name: its.dtype for name, its in average.trained().items()} == {
        name: p.dtype for name, p in trainable(model).items()
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_average_that_is_loaded_goes_on_as_if_it_had_never_stopped(precision):
    model, other = small_model(precision), small_model(precision)
    optimizers = trainer(model, precision), trainer(other, precision)
    whole, resumed = (
        ExponentialMovingAverage(model, optimizers[0], 0.9),
        ExponentialMovingAverage(other, optimizers[1], 0.9),
    )
    for step in steps(model, optimizers[0], 1, 4):
        whole.update(step)
    other.load_state_dict(whole.weights() | whole.trained())
    resumed.load(whole.weights())
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))  # or they would share their moments
    for average, its_model, optimizer in ((whole, model, optimizers[0]), (resumed, other, optimizers[1])):
        for step in steps(its_model, optimizer, 5, 8):
            average.update(step)
    for name, expected in whole.weights().items():
        assert torch.equal(resumed.weights()[name], expected)


def test_without_an_average_the_weights_are_the_models_and_nothing_is_kept_besides():
    model = small_model("fp32")
    latest = NoAverage(model, trainer(model, "fp32"))
    latest.update(1)
    with latest.applied():
        assert all(torch.equal(latest.weights()[name], p) for name, p in model.named_parameters())
    assert latest.trained() == {}


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_that_makes_no_sense_is_named(decay):
    model = small_model("fp32")
    with pytest.raises(InputError, match=r"average\.decay"):
        ExponentialMovingAverage(model, trainer(model, "fp32"), decay)
