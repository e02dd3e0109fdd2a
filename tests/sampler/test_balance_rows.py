import pytest

from bbu_train.runtime.seeds import generator
from bbu_train.sampler.balance_rows import MAX_GROUP, balance_costs


def test_samples_of_equal_length_are_exchanged_until_rows_cost_the_same():
    assert sorted(map(sorted, balance_costs([[0, 1], [2, 3]], [5, 5, 5, 5], [9, 9, 1, 1], 10))) == [[0, 3], [1, 2]]


def test_samples_are_exchanged_only_if_both_rows_have_room():
    rows, lengths, costs = [[0, 1], [2, 3]], [9, 1, 8, 2], [9, 9, 1, 1]
    assert balance_costs(rows, lengths, costs, 10) == rows
    assert balance_costs(rows, lengths, costs, 11) == [[2, 1], [0, 3]]


def test_a_sample_moves_without_exchange_if_there_is_room():
    assert sorted(map(sorted, balance_costs([[0, 1, 2], [3]], [2, 2, 2, 2], [4, 4, 4, 4], 6))) == [[0, 3], [1, 2]]


def test_a_single_row_stays_as_it_is():
    assert balance_costs([[0, 1]], [5, 5], [9, 1], 10) == [[0, 1]]


@pytest.mark.parametrize("num_rows", [2, 7, MAX_GROUP + 1])
def test_no_sample_is_lost_no_row_gets_too_long_and_costs_get_close(num_rows):
    random = generator("exchange", num_rows)
    rows = [list(range(5 * i, 5 * i + 5)) for i in range(num_rows)]
    lengths, costs = (random.integers(1, 100, 5 * num_rows).tolist() for _ in range(2))
    balanced = balance_costs(rows, lengths, costs, 500)
    assert sorted(i for row in balanced for i in row) == list(range(5 * num_rows))
    assert max(sum(lengths[i] for i in row) for row in balanced) <= 500
    totals = [sum(costs[i] for i in row) for row in balanced]
    assert max(totals) - min(totals) < 0.1 * sum(totals) / num_rows
