"""Float32 numbers split into bfloat16 numbers and low bits."""

import pytest
import torch

from bbu_train.ops.split_float32 import merge_float32, split_float32

BITS = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)  # the low bits of a number


@pytest.fixture
def numbers():
    """Numbers of each sign and exponent, with even and odd high bits and each of BITS as low bits."""
    high = torch.arange(0, 0x7F80, 0x40 + 1, dtype=torch.int32) << 16
    bits = (high[:, None] + BITS).flatten()
    values = bits.view(torch.float32)
    return torch.cat([values, -values])


def test_merging_restores_every_bit(numbers):
    assert torch.equal(merge_float32(*split_float32(numbers)).view(torch.int32), numbers.view(torch.int32))


def test_the_weight_is_the_nearest_bfloat16_number_with_ties_away_from_0(numbers):
    weight, _ = split_float32(numbers)
    is_tie = (numbers.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(weight[~is_tie], numbers[~is_tie].bfloat16())
    above = ((numbers.view(torch.int32) & -0x10000) + 0x10000).view(torch.float32)
    assert is_tie.any()
    assert torch.equal(weight[is_tie].float(), above[is_tie])


def test_a_bfloat16_number_has_no_low_bits(numbers):
    expected = numbers.bfloat16()
    weight, low_bits = split_float32(expected.float())
    assert torch.equal(weight, expected)
    assert not low_bits.any()
