"""The average of the weights: equal to torch's, applied for evaluation, saved and resumed."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bbu_train.average import ema
from bbu_train.average.ema import ExponentialMovingAverage, build
from bbu_train.average.none import NoAverage
from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32
from bbu_train.optimizer import adamw
from bbu_train.runtime.seeds import generator

PRECISIONS = ("fp32", "bf16", "pure_bf16")
NUM_STEPS = 100


def small_model(precision):
    """Return two layers with matrices in the dtype of the precision; the first layer's bias is frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    for parameter in model.parameters():
        if precision != "fp32" and parameter.ndim == 2:
            parameter.data = parameter.data.bfloat16()
    model[0].bias.requires_grad_(False)
    return model


def make_optimizer(model, precision):
    one_group = {"all": {"pattern": "", "submodule": "0", "lr": 0.1}}
    return adamw.build(model, one_group, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, precision=precision)


def steps(model, optimizer, first, last):
    """Make steps `first` to `last` and yield the number of each; its gradients depend only on the number."""
    for step in range(first, last + 1):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradient = generator("ema", step, name).standard_normal(tuple(parameter.shape))
                parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)
        optimizer.step()
        yield step


def masters(model, optimizer):
    """Return the float32 masters of trained weights, or the weights where there are none."""
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
def test_the_average_equals_torchs_average_of_the_float32_weights(precision, decay):
    model = small_model(precision)
    optimizer = make_optimizer(model, precision)
    average = ExponentialMovingAverage(model, optimizer, decay, NUM_STEPS)
    float32_weights = nn.ParameterDict(
        {name.replace(".", "_"): p.detach().float() for name, p in trainable(model).items()}
    )
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(30)]
    expected = AveragedModel(
        float32_weights,
        avg_fn=lambda averaged, weight, _: decays[step] * averaged + (1 - decays[step]) * weight,
        use_buffers=False,
    )
    expected.n_averaged += 1  # else it starts from the weights of the first update
    for step in steps(model, optimizer, 1, 12):
        average.update(step)
        for name, weight in masters(model, optimizer).items():
            float32_weights[name.replace(".", "_")].data.copy_(weight)
        expected.update_parameters(float32_weights)
    for name, weight in expected.module.items():
        torch.testing.assert_close(average.averages[name.replace("_", ".")], weight.detach())
    assert set(average.averages) == set(trainable(model))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_size_of_chunks_does_not_change_the_average(precision, monkeypatch):
    averages = []
    for max_elements in (ema.MAX_ELEMENTS, 1):
        monkeypatch.setattr(ema, "MAX_ELEMENTS", max_elements)
        model = small_model(precision)
        optimizer = make_optimizer(model, precision)
        average = ExponentialMovingAverage(model, optimizer, 0.9, NUM_STEPS)
        for step in steps(model, optimizer, 1, 5):
            average.update(step)
        averages.append(average.averages)
    assert all(torch.equal(averages[0][name], other) for name, other in averages[1].items())


def test_a_weight_without_optimizer_state_is_averaged_with_the_others():
    model = small_model("bf16")
    optimizer = make_optimizer(model, "bf16")
    average = ExponentialMovingAverage(model, optimizer, 0.9, NUM_STEPS)
    before = model[0].weight.detach().float()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    optimizer.step()
    average.update(1)
    assert torch.equal(average.averages["0.weight"], before)
    assert not torch.equal(average.averages["1.weight"], model[1].weight.float())


def test_the_decay_grows_with_the_steps_up_to_its_limit():
    model = small_model("fp32")
    average = ExponentialMovingAverage(model, make_optimizer(model, "fp32"), decay=0.6, num_steps=NUM_STEPS)
    weight = model[1].bias
    expected = weight.detach().clone()
    for step, decay in [(1, 2 / 11), (2, 3 / 12), (3, 4 / 13), (1000, 0.6)]:
        weight.data += 1
        average.update(step)
        expected = decay * expected + (1 - decay) * weight.detach()
        torch.testing.assert_close(average.averages["1.bias"], expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_model_has_the_averages_while_applied_and_its_own_weights_afterwards_bit_for_bit(precision):
    model = small_model(precision)
    optimizer = make_optimizer(model, precision)
    average = ExponentialMovingAverage(model, optimizer, 0.9, NUM_STEPS)
    for step in steps(model, optimizer, 1, 5):
        average.update(step)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state_before = optimizer.state_dict()["state"].keys()
    with pytest.raises(KeyboardInterrupt), average.applied():
        for name, parameter in model.named_parameters():
            expected = average.averages.get(name, before[name])
            assert torch.equal(parameter, expected.to(parameter.dtype))
        assert not torch.equal(model[1].weight, before["1.weight"])
        assert all(torch.equal(average.unaveraged_weights()[name], before[name]) for name in trainable(model))
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert optimizer.state_dict()["state"].keys() == state_before


def test_weights_that_do_not_fit_twice_on_their_device_are_kept_on_the_host_while_averages_are_applied(monkeypatch):
    model = small_model("fp32")
    average = ExponentialMovingAverage(model, make_optimizer(model, "fp32"), 0.9, NUM_STEPS)
    before = model[1].weight.detach().tolist()
    average.averages["1.weight"] += 1
    copies = []

    def copy_one(tensor):
        copies.append(tensor)
        if len(copies) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return tensor

    monkeypatch.setattr(torch.Tensor, "clone", copy_one)
    with average.applied():
        assert torch.equal(model[1].weight, average.averages["1.weight"])
        assert average.unaveraged_weights()["1.weight"].tolist() == before
    assert model[1].weight.tolist() == before
    assert len(copies) == 2


def test_weights_to_save_are_averages_of_trained_parameters_and_the_frozen_weights():
    model = small_model("bf16")
    optimizer = make_optimizer(model, "bf16")
    average = ExponentialMovingAverage(model, optimizer, 0.9, NUM_STEPS)
    for step in steps(model, optimizer, 1, 3):
        average.update(step)
    weights = average.weights()
    assert list(weights) == [name for name, _ in model.named_parameters()]
    assert torch.equal(weights["0.bias"], model[0].bias)
    assert all(torch.equal(weights[name], tensor) for name, tensor in average.averages.items())
    assert {tensor.dtype for tensor in average.averages.values()} == {torch.float32}
    dtypes = {name: parameter.dtype for name, parameter in trainable(model).items()}
    assert {name: weight.dtype for name, weight in average.unaveraged_weights().items()} == dtypes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_average_equals_an_uninterrupted_one(precision):
    model, other = small_model(precision), small_model(precision)
    optimizers = make_optimizer(model, precision), make_optimizer(other, precision)
    uninterrupted, resumed = (
        ExponentialMovingAverage(model, optimizers[0], 0.9, NUM_STEPS),
        ExponentialMovingAverage(other, optimizers[1], 0.9, NUM_STEPS),
    )
    for step in steps(model, optimizers[0], 1, 4):
        uninterrupted.update(step)
    other.load_state_dict(uninterrupted.weights() | uninterrupted.unaveraged_weights())
    resumed.load(uninterrupted.weights())
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))  # else they would share their moments
    for average, optimizer in ((uninterrupted, optimizers[0]), (resumed, optimizers[1])):
        for step in steps(average.model, optimizer, 5, 8):
            average.update(step)
    for name, expected in uninterrupted.weights().items():
        assert torch.equal(resumed.weights()[name], expected)


def test_without_an_average_the_weights_are_the_models_and_nothing_else_is_saved():
    model = small_model("fp32")
    average = NoAverage(model, make_optimizer(model, "fp32"))
    average.update(1)
    with average.applied():
        assert all(torch.equal(average.weights()[name], p) for name, p in model.named_parameters())
    assert average.unaveraged_weights() == {}


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, None, float("nan")])
def test_an_invalid_decay_is_refused_by_its_key_before_there_is_a_model(decay):
    with pytest.raises(InputError, match=r"average\.decay"):
        build(decay, NUM_STEPS)


def test_a_decay_that_the_run_is_too_short_for_gives_the_average_of_any_higher_one_and_a_warning(caplog):
    averages = []
    for decay in (11 / 20, 0.9998):  # 11 / 20 is that of step 10, the last
        model = small_model("fp32")
        optimizer = make_optimizer(model, "fp32")
        average = ExponentialMovingAverage(model, optimizer, decay, num_steps=10)
        for step in steps(model, optimizer, 1, 10):
            average.update(step)
        averages.append(average.weights())
        assert f"average.decay={decay} makes no difference in a run of 10 steps" in caplog.text
        assert "below 0.55 make one" in caplog.text
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])
    caplog.clear()
    ExponentialMovingAverage(model, optimizer, 0.54, num_steps=10)
    assert not caplog.text
