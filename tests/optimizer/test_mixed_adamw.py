"""AdamW over bfloat16 weights, compared with torch's AdamW over float32 weights."""

import pytest
import torch
from torch import nn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32
from bbu_train.optimizer.groups import state_bytes
from bbu_train.optimizer.mixed_adamw import MixedAdamW, lowbias32, round_stochastically
from bbu_train.runtime.seeds import generator

SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8}
SHAPES = [(48, 64), (7, 5)]  # of matrices: one whose size is a multiple of the kernel's block, and one that is not


def random_normal(*name, shape, scale=1.0):
    values = generator("mixed adamw", *name).standard_normal(shape, dtype="float32")
    return torch.from_numpy(values * scale)


def matrices(dtype=torch.bfloat16):
    """Return parameters of `dtype` whose values are exact in bfloat16."""
    return [nn.Parameter(random_normal(*shape, shape=shape).bfloat16().to(dtype)) for shape in SHAPES]


def groups(parameters, lr=1e-3):
    return [{"params": parameters, "lr": lr, "weight_decay": 0.1, "name": "all"}]


def mixed(parameters, has_masters=True, lr=1e-3):
    return MixedAdamW(groups(parameters, lr), has_masters=has_masters, **SETTINGS)


def train(optimizer, parameters, num_steps=5, first=0):
    """Take steps along bfloat16 gradients that depend on the step and the shape only."""
    for step in range(first, first + num_steps):
        for parameter in parameters:
            gradient = random_normal("gradient", step, *parameter.shape, shape=tuple(parameter.shape))
            parameter.grad = gradient.bfloat16().to(parameter.dtype)
        optimizer.step()


@pytest.fixture
def expected():
    """The weights and states of torch's AdamW with float32 weights and the same gradients."""
    parameters = matrices(torch.float32)
    optimizer = torch.optim.AdamW(groups(parameters), fused=True, **SETTINGS)
    train(optimizer, parameters)
    return parameters, [optimizer.state[parameter] for parameter in parameters]


def test_masters_equal_the_float32_weights_of_torchs_adamw(expected):
    parameters = matrices()
    optimizer = mixed(parameters)
    train(optimizer, parameters)
    for parameter, weight, expected_state in zip(parameters, *expected, strict=True):
        state = optimizer.state[parameter]
        torch.testing.assert_close(merge_float32(parameter.detach(), state["low_bits"]), weight.detach())
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[moment], expected_state[moment])


def test_each_weight_is_its_rounded_master():
    parameters = matrices()
    optimizer = mixed(parameters)
    train(optimizer, parameters)
    for parameter in parameters:
        assert torch.equal(
            parameter, merge_float32(parameter.detach(), optimizer.state[parameter]["low_bits"]).bfloat16()
        )


def test_float32_parameters_without_decay_are_updated_as_by_torch():
    bias, other = (nn.Parameter(random_normal("bias", shape=16)) for _ in range(2))
    settings = {"lr": 1e-3, "weight_decay": 0.0, "name": "none"}
    train(MixedAdamW([*groups(matrices()), {"params": [bias], **settings}], has_masters=True, **SETTINGS), [bias])
    train(torch.optim.AdamW([other], fused=True, lr=1e-3, weight_decay=0.0, **SETTINGS), [other])
    assert torch.equal(bias, other)


def test_gradients_are_divided_by_the_scale_on_the_device(expected):
    parameters = matrices()
    optimizer = mixed(parameters)
    optimizer.grad_scale = torch.tensor(4.0)
    for step in range(5):
        for parameter in parameters:
            parameter.grad = (
                4 * random_normal("gradient", step, *parameter.shape, shape=tuple(parameter.shape)).bfloat16()
            )
        optimizer.step()
    for parameter, weight in zip(parameters, expected[0], strict=True):
        master = merge_float32(parameter.detach(), optimizer.state[parameter]["low_bits"])
        torch.testing.assert_close(master, weight.detach())


@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("has_masters", [True, False])
def test_training_goes_on_bit_for_bit_as_if_a_refused_step_had_not_been(dtype, has_masters, num_steps):
    """Weights, moments, step counts and the random bits of the rounding are what they were."""
    parameters, others = matrices(dtype), matrices(dtype)
    parameters[0].data[0, 0] = others[0].data[0, 0] = -0.0  # adding 0 would change its sign
    optimizer, other = mixed(parameters, has_masters), mixed(others, has_masters)
    pairs = (optimizer, parameters), (other, others)
    for pair in pairs:
        train(*pair, num_steps=num_steps)
    optimizer.found_inf = torch.ones(())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    optimizer.found_inf = torch.zeros(())
    assert all(map(have_equal_bits, parameters, others))
    for pair in pairs:
        train(*pair, num_steps=2, first=num_steps)
    assert all(map(have_equal_bits, parameters, others))
    states = ([value for parameter in its for value in tensors(own.state[parameter])] for own, its in pairs)
    assert all(map(have_equal_bits, *states))


def have_equal_bits(one, other):
    integers = torch.int16 if one.element_size() == 2 else torch.int32
    return one.dtype == other.dtype and torch.equal(one.detach().view(integers), other.detach().view(integers))


def tensors(state):
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("has_masters", [True, False])
def test_training_from_a_saved_state_continues_bit_for_bit(has_masters):
    parameters, resumed = matrices(), matrices()
    optimizer = mixed(parameters, has_masters)
    train(optimizer, parameters, num_steps=3)
    other = mixed(resumed, has_masters)
    other.load_state_dict(optimizer.state_dict())
    for parameter, trained in zip(resumed, parameters, strict=True):
        parameter.data.copy_(trained)
    train(optimizer, parameters, num_steps=2, first=3)
    train(other, resumed, num_steps=2, first=3)
    for one, same in zip(parameters, resumed, strict=True):
        assert torch.equal(one, same)
        states = tensors(optimizer.state[one]), tensors(other.state[same])
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("has_masters", [True, False])
def test_a_state_with_masters_is_not_loaded_as_one_without_nor_the_reverse(has_masters):
    parameters = matrices()
    optimizer = mixed(parameters, has_masters)
    train(optimizer, parameters)
    with pytest.raises(InputError, match=r"bfloat16 weight has step, exp_avg, exp_avg_sq.*engine\.precision"):
        mixed(matrices(), not has_masters).load_state_dict(optimizer.state_dict())


def test_without_masters_weights_and_moments_are_bfloat16():
    parameters = matrices()
    optimizer = mixed(parameters, has_masters=False)
    train(optimizer, parameters)
    moments = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
    assert {x.dtype for x in (*parameters, *moments)} == {torch.bfloat16}


@pytest.mark.parametrize("has_masters", [True, False])
def test_state_bytes_predicts_the_size_of_the_state(has_masters):
    parameters = [*matrices(), nn.Parameter(random_normal("bias", shape=16))]
    optimizer = mixed(parameters, has_masters)
    expected = state_bytes(optimizer)
    train(optimizer, parameters)
    kept = [value for p in parameters for name, value in optimizer.state[p].items() if name != "step"]
    assert sum(value.nbytes for value in kept) == expected


def test_small_updates_without_masters_add_up_on_average():
    parameters, exact = [nn.Parameter(torch.ones(256, 64).bfloat16())], [nn.Parameter(torch.ones(256, 64))]
    optimizer = mixed(parameters, has_masters=False, lr=1e-5)
    reference = torch.optim.AdamW(groups(exact, lr=1e-5), fused=True, **SETTINGS)
    for _ in range(50):
        for parameter in (parameters[0], exact[0]):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        reference.step()
    moved = 1 - parameters[0].float().mean().item()
    assert moved == pytest.approx(1 - exact[0].mean().item(), rel=0.05)  # each update is a four-hundredth of a step
    assert moved > 0


def test_stochastic_rounding_gives_both_neighbours_and_the_right_mean():
    x = torch.full((100_000,), 1 + 1 / 512)  # a quarter of the way from 1 to the next bfloat16 number
    rounded = round_stochastically(x, lowbias32(torch.arange(100_000, dtype=torch.int32))).float()
    assert sorted(set(rounded.tolist())) == [1, 1 + 1 / 128]
    assert (rounded > 1).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_the_hash_has_no_collisions():
    assert len(lowbias32(torch.arange(1 << 20, dtype=torch.int32)).unique()) == 1 << 20


def exact(weight, state):
    """Return the float32 weight, if the state has its low bits, and the moments."""
    weight = merge_float32(weight, state["low_bits"]) if "low_bits" in state else weight
    return weight, state["exp_avg"], state["exp_avg_sq"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on CUDA only")
@pytest.mark.parametrize("has_masters", [True, False])
def test_the_kernel_does_the_same_as_the_torch_code(has_masters):
    results = []
    for device in ("cpu", "cuda"):
        parameters = [nn.Parameter(parameter.detach().to(device)) for parameter in matrices()]
        optimizer = mixed(parameters, has_masters)
        for step in range(3):
            for parameter in parameters:
                gradient = random_normal("gradient", step, *parameter.shape, shape=tuple(parameter.shape))
                parameter.grad = gradient.bfloat16().to(device)
            optimizer.step()
        results.append([x.detach().cpu() for p in parameters for x in (p, *exact(p.detach(), optimizer.state[p]))])
    for actual, expected in zip(*results, strict=True):  # a bfloat16 value may be off by one rounding step, 2^-7
        tolerance = 1e-5 if expected.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=1e-6)
