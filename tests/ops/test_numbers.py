import math

import pytest

from bbu_train.ops.numbers import is_count, is_number


@pytest.mark.parametrize("value", [0, -1, 2.5, 10**400])
def test_finite_ints_and_floats_are_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [True, "1", None, math.inf, math.nan, [1]])
def test_nothing_else_is_a_number(value):
    assert not is_number(value)


def test_a_count_is_a_whole_number_from_its_minimum_on():
    assert [is_count(value, minimum=1) for value in (0, 1, 2, 1.0, True)] == [False, True, True, False, False]
