import pytest

from bbu_train.errors import InputError
from bbu_train.sampler.token_budget import TokenBudget
from bbu_train.seeds import generator

BUDGET = 2048
# Many short samples and few long ones, as turns with an exponential number of objects give.
LENGTHS = (60 + generator("lengths").exponential(450, 4096)).astype(int).clip(max=BUDGET).tolist()


def plan(num_samples=1000, max_row_tokens=BUDGET, num_rows=3, window=128, seed=17, epoch=0):
    sampler = TokenBudget(max_row_tokens, num_rows, window, seed)
    return sampler.epoch(epoch, range(num_samples), lambda draw: LENGTHS[draw.index])


def rows_of(steps):
    return [row for step in steps for row in step]


def tokens_of(row):
    return sum(LENGTHS[draw.index] for draw in row)


@pytest.mark.parametrize("window", [1, 7, 128, 5000])
def test_an_epoch_visits_every_sample_once(window):
    assert sorted(draw.index for row in rows_of(plan(window=window)) for draw in row) == list(range(1000))


@pytest.mark.parametrize("window", [1, 7, 128, 5000])
def test_no_row_is_empty_or_over_the_budget(window):
    assert all(0 < tokens_of(row) <= BUDGET for row in rows_of(plan(window=window)))


def test_every_step_but_the_last_has_the_number_of_rows_asked_for():
    sizes = [len(step) for step in plan(num_rows=3)]
    assert set(sizes[:-1]) == {3}
    assert 1 <= sizes[-1] <= 3


@pytest.mark.parametrize("max_row_tokens", [2048, 16384])
def test_rows_are_filled_to_more_than_99_percent(max_row_tokens):
    rows = rows_of(plan(num_samples=len(LENGTHS), window=512, max_row_tokens=max_row_tokens))
    assert sum(map(tokens_of, rows)) / (len(rows) * max_row_tokens) > 0.99


def test_the_samples_of_the_emptiest_row_join_the_next_window():
    lengths = [4, 6]
    (step,) = TokenBudget(10, 9, window=1, seed=17).epoch(0, range(2), lambda draw: lengths[draw.index])
    assert [sum(lengths[draw.index] for draw in row) for row in step] == [10]


def test_each_sample_goes_into_the_fullest_row_that_has_room():
    lengths = [6, 5, 4, 3, 2]  # 6 + 4, 5 + 3 + 2
    (step,) = TokenBudget(10, 9, 5, 17).epoch(0, range(5), lambda draw: lengths[draw.index])
    assert sorted(sorted(lengths[draw.index] for draw in row) for row in step) == [[2, 3, 5], [4, 6]]


def test_the_same_seed_and_epoch_give_the_same_plan():
    assert plan() == plan()


@pytest.mark.parametrize("other", [{"seed": 18}, {"epoch": 1}])
def test_another_seed_or_epoch_gives_other_steps(other):
    def sets(steps):
        return [{draw.index for row in step for draw in row} for step in steps]

    assert sets(plan()) != sets(plan(**other))


def test_the_longest_samples_of_a_window_do_not_come_first():
    longest = [max(LENGTHS[draw.index] for draw in row) for row in rows_of(plan(num_samples=512, window=512))]
    first, second = longest[: len(longest) // 2], longest[len(longest) // 2 :]
    assert abs(sum(first) / len(first) - sum(second) / len(second)) < 0.2 * max(longest)


def test_a_sample_that_fits_no_row_is_an_error_with_its_remedy():
    with pytest.raises(InputError, match=r"A sample of \d+ tokens .* sampler.max_row_tokens=100. Raise it, or set"):
        plan(max_row_tokens=100)


@pytest.mark.parametrize("name", ["max_row_tokens", "num_rows", "window"])
def test_every_size_must_be_positive(name):
    with pytest.raises(InputError, match=f"sampler.{name} is 0"):
        plan(**{name: 0})
