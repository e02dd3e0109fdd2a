"""AdamW over bfloat16 weights, compared with torch's own over float32 ones."""

import pytest
import torch
from torch import nn

from bbu_train.errors import InputError
from bbu_train.ops.split_float32 import merge_float32
from bbu_train.optimizer.groups import state_bytes
from bbu_train.optimizer.mixed_adamw import MixedAdamW, mix, round_stochastically
from bbu_train.runtime.seeds import generator

SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8}
SHAPES = [(48, 64), (7, 5)]  # of matrices: one that is a multiple of a kernel's reads, and one that is not


def numbers(*name, shape, scale=1.0):
    values = generator("mixed adamw", *name).standard_normal(shape, dtype="float32")
    return torch.from_numpy(values * scale)


def matrices(dtype=torch.bfloat16):
    """Parameters whose numbers are bfloat16 ones, whatever they are kept in."""
    return [nn.Parameter(numbers(*shape, shape=shape).bfloat16().to(dtype)) for shape in SHAPES]


def groups(parameters, lr=1e-3):
    return [{"params": parameters, "lr": lr, "weight_decay": 0.1, "name": "all"}]


def mixed(parameters, masters=True, lr=1e-3):
    return MixedAdamW(groups(parameters, lr), masters=masters, **SETTINGS)


def train(optimizer, parameters, num_steps=5, first=0):
    """Steps along the same bfloat16 gradients for everyone."""
    for step in range(first, first + num_steps):
        for parameter in parameters:
            gradient = numbers("gradient", step, *parameter.shape, shape=tuple(parameter.shape))
            parameter.grad = gradient.bfloat16().to(parameter.dtype)
        optimizer.step()


@pytest.fixture
def expected():
    """What torch's AdamW makes of float32 weights and the same gradients: the weights, and its state."""
    parameters = matrices(torch.float32)
    optimizer = torch.optim.AdamW(groups(parameters), fused=True, **SETTINGS)
    train(optimizer, parameters)
    return parameters, [optimizer.state[parameter] for parameter in parameters]


def test_masters_go_where_torchs_adamw_takes_float32_weights(expected):
    parameters = matrices()
    optimizer = mixed(parameters)
    train(optimizer, parameters)
    for parameter, weight, its in zip(parameters, *expected, strict=True):
        state = optimizer.state[parameter]
        torch.testing.assert_close(merge_float32(parameter.detach(), state["low_bits"]), weight.detach())
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[moment], its[moment])


def test_a_weight_is_its_master_rounded():
    parameters = matrices()
    optimizer = mixed(parameters)
    train(optimizer, parameters)
    for parameter in parameters:
        assert torch.equal(
            parameter, merge_float32(parameter.detach(), optimizer.state[parameter]["low_bits"]).bfloat16()
        )


def test_float32_parameters_among_them_are_updated_as_torch_does():
    bias, other = (nn.Parameter(numbers("bias", shape=16)) for _ in range(2))
    train(mixed([*matrices(), bias]), [bias])
    train(torch.optim.AdamW(groups([other]), fused=True, **SETTINGS), [other])
    assert torch.equal(bias, other)


def test_gradients_are_divided_by_the_scale_on_the_device(expected):
    parameters = matrices()
    optimizer = mixed(parameters)
    optimizer.grad_scale = torch.tensor(4.0)
    for step in range(5):
        for parameter in parameters:
            parameter.grad = 4 * numbers("gradient", step, *parameter.shape, shape=tuple(parameter.shape)).bfloat16()
        optimizer.step()
    for parameter, weight in zip(parameters, expected[0], strict=True):
        master = merge_float32(parameter.detach(), optimizer.state[parameter]["low_bits"])
        torch.testing.assert_close(master, weight.detach())


@pytest.mark.parametrize("masters", [True, False])
def test_a_refused_step_changes_no_number(masters):
    parameters = matrices()
    optimizer = mixed(parameters, masters)
    train(optimizer, parameters)
    kept = [[x.clone() for x in (p, *tensors(optimizer.state[p]))] for p in parameters]
    optimizer.found_inf = torch.ones(())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    for parameter, before in zip(parameters, kept, strict=True):
        after = [parameter, *tensors(optimizer.state[parameter])]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def tensors(state):
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("masters", [True, False])
def test_a_saved_state_goes_on_bit_for_bit(masters):
    parameters, resumed = matrices(), matrices()
    optimizer = mixed(parameters, masters)
    train(optimizer, parameters, num_steps=3)
    other = mixed(resumed, masters)
    other.load_state_dict(optimizer.state_dict())
    for parameter, its in zip(resumed, parameters, strict=True):
        parameter.data.copy_(its)
    train(optimizer, parameters, num_steps=2, first=3)
    train(other, resumed, num_steps=2, first=3)
    for one, same in zip(parameters, resumed, strict=True):
        assert torch.equal(one, same)
        states = tensors(optimizer.state[one]), tensors(other.state[same])
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("masters", [True, False])
def test_a_state_with_masters_is_not_read_as_one_without_or_the_other_way_round(masters):
    parameters = matrices()
    optimizer = mixed(parameters, masters)
    train(optimizer, parameters)
    with pytest.raises(InputError, match=r"bfloat16 weight is step, exp_avg, exp_avg_sq.*engine\.precision"):
        mixed(matrices(), not masters).load_state_dict(optimizer.state_dict())


def test_without_masters_nothing_but_bfloat16_is_kept():
    parameters = matrices()
    optimizer = mixed(parameters, masters=False)
    train(optimizer, parameters)
    assert {x.dtype for p in parameters for x in (p, *tensors(optimizer.state[p]))} == {torch.bfloat16}


@pytest.mark.parametrize("masters", [True, False])
def test_the_size_of_the_state_is_known_before_it_is_there(masters):
    parameters = [*matrices(), nn.Parameter(numbers("bias", shape=16))]
    optimizer = mixed(parameters, masters)
    expected = state_bytes(optimizer)
    train(optimizer, parameters)
    kept = [value for p in parameters for name, value in optimizer.state[p].items() if name != "step"]
    assert sum(value.nbytes for value in kept) == expected


def test_small_updates_without_masters_add_up_on_average():
    parameters, exact = [nn.Parameter(torch.ones(256, 64).bfloat16())], [nn.Parameter(torch.ones(256, 64))]
    optimizer = mixed(parameters, masters=False, lr=1e-5)
    reference = torch.optim.AdamW(groups(exact, lr=1e-5), fused=True, **SETTINGS)
    for _ in range(50):
        for its in (parameters, exact):
            its[0].grad = torch.ones_like(its[0])
        optimizer.step()
        reference.step()
    moved = 1 - parameters[0].float().mean().item()
    assert moved == pytest.approx(1 - exact[0].mean().item(), rel=0.05)  # each update is a four-hundredth of a step
    assert moved > 0


def test_stochastic_rounding_gives_both_neighbours_and_their_mean():
    x = torch.full((100_000,), 1 + 1 / 512)  # a quarter of the way from 1 to the next bfloat16 number
    rounded = round_stochastically(x, mix(torch.arange(100_000, dtype=torch.int32))).float()
    assert sorted(set(rounded.tolist())) == [1, 1 + 1 / 128]
    assert (rounded > 1).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_the_hash_sends_no_two_numbers_to_one():
    assert len(mix(torch.arange(1 << 20, dtype=torch.int32)).unique()) == 1 << 20


def exact(weight, state):
    """The weight as exactly as it is known, and its moments."""
    weight = merge_float32(weight, state["low_bits"]) if "low_bits" in state else weight
    return weight, state["exp_avg"], state["exp_avg_sq"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on CUDA only")
@pytest.mark.parametrize("masters", [True, False])
def test_the_kernel_does_what_the_lines_say(masters):
    results = []
    for device in ("cpu", "cuda"):
        parameters = [nn.Parameter(parameter.detach().to(device)) for parameter in matrices()]
        optimizer = mixed(parameters, masters)
        for step in range(3):
            for parameter in parameters:
                gradient = numbers("gradient", step, *parameter.shape, shape=tuple(parameter.shape))
                parameter.grad = gradient.bfloat16().to(device)
            optimizer.step()
        results.append([x.detach().cpu() for p in parameters for x in (p, *exact(p.detach(), optimizer.state[p]))])
    for found, expected in zip(*results, strict=True):  # a bfloat16 number may be the neighbour: 2^-7 of it
        tolerance = 1e-5 if expected.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-6)
