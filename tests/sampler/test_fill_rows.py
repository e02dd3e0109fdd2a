import pytest

from bbu_train.runtime.seeds import generator
from bbu_train.sampler.fill_rows import fill_rows


def lengths_in_rows(lengths, max_row_tokens, balanced_share):
    rows = fill_rows(range(len(lengths)), lengths, max_row_tokens, balanced_share)
    return [sorted((lengths[i] for i in row), reverse=True) for row in rows]


def test_best_fit_puts_a_sample_into_the_fullest_row_that_has_room():
    rows = lengths_in_rows([6, 5, 4, 3, 2], 10, balanced_share=0)
    assert sorted(rows) == [[5, 3, 2], [6, 4]]


def test_the_balanced_share_goes_to_the_row_with_the_fewest_tokens():
    rows = lengths_in_rows([9, 8, 7, 6, 5, 5], 20, balanced_share=1)
    assert sorted(rows) == [[8, 7, 5], [9, 6, 5]]


def test_the_surplus_room_is_left_in_the_last_row():
    rows = lengths_in_rows([5] * 9, 20, balanced_share=1)
    assert rows == [[5] * 4, [5] * 4, [5]]


@pytest.mark.parametrize("balanced_share", [0, 0.3, 0.7, 1])
@pytest.mark.parametrize("max_length", [10, 400, 1000])
def test_every_sample_lies_in_one_row_and_the_emptiest_row_is_the_last(balanced_share, max_length):
    lengths = generator("fill", max_length).integers(1, max_length + 1, 300).tolist()
    rows = fill_rows(range(300), lengths, 1000, balanced_share)
    assert sorted(i for row in rows for i in row) == list(range(300))
    totals = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < total <= 1000 for total in totals)
    assert totals[-1] == min(totals)
