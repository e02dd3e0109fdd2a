import pytest

from bbu_train.errors import InputError
from bbu_train.runtime.seeds import generator
from bbu_train.sampler.token_budget import TokenBudget

BUDGET = 2048
# Many short samples and few long ones, as in conversations with an exponential number of objects.
LENGTHS = (60 + generator("lengths").exponential(450, 4096)).astype(int).clip(max=BUDGET).tolist()
# Samples of equal length cost more if they have more pictures.
COSTS = [length * (2 + i % 3) for i, length in enumerate(LENGTHS)]


def plan(
    num_samples=1000,
    max_row_tokens=BUDGET,
    num_rows=3,
    window=128,
    balanced_share=0.7,
    seed=17,
    epoch=0,
    lengths=LENGTHS,
):
    sampler = TokenBudget(max_row_tokens, num_rows, window, balanced_share, seed)
    return sampler.epoch(
        epoch,
        range(num_samples),
        num_tokens=lambda draw: lengths[draw.index],
        cost=lambda draw: COSTS[draw.index],
        name=lambda draw: f"sample-{draw.index}",
    )


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


def test_every_step_but_the_last_has_num_rows_rows():
    sizes = [len(step) for step in plan(num_rows=3)]
    assert set(sizes[:-1]) == {3}
    assert 1 <= sizes[-1] <= 3


@pytest.mark.parametrize("max_row_tokens", [2048, 16384])
def test_rows_are_filled_to_more_than_99_percent(max_row_tokens):
    rows = rows_of(plan(num_samples=len(LENGTHS), window=512, max_row_tokens=max_row_tokens))
    assert sum(map(tokens_of, rows)) / (len(rows) * max_row_tokens) > 0.99


def test_the_samples_of_the_emptiest_row_join_the_next_window():
    lengths = [4, 6]
    (step,) = plan(2, max_row_tokens=10, num_rows=9, window=1, lengths=lengths)
    assert [sum(lengths[draw.index] for draw in row) for row in step] == [10]


def test_the_same_seed_and_epoch_give_the_same_plan():
    assert plan() == plan()


@pytest.mark.parametrize("other", [{"seed": 18}, {"epoch": 1}])
def test_another_seed_or_epoch_gives_other_steps(other):
    def sets(steps):
        return [{draw.index for row in step for draw in row} for step in steps]

    assert sets(plan()) != sets(plan(**other))


def test_the_longest_samples_of_a_window_do_not_come_first():
    max_lengths = [max(LENGTHS[draw.index] for draw in row) for row in rows_of(plan(num_samples=512, window=512))]
    first, second = max_lengths[: len(max_lengths) // 2], max_lengths[len(max_lengths) // 2 :]
    assert abs(sum(first) / len(first) - sum(second) / len(second)) < 0.2 * max(max_lengths)


def test_every_sample_that_does_not_fit_a_row_is_named_with_its_length():
    with pytest.raises(InputError) as raised:
        plan(4, max_row_tokens=100, lengths=[101, 99, 100, 300], epoch=2)
    assert str(raised.value).splitlines() == [
        "Samples are longer than sampler.max_row_tokens=100 tokens: 2 problems.",
        "  sample-3: 300 tokens in epoch 2",
        "  sample-0: 101 tokens in epoch 2",
        "sampler.max_row_tokens=300 takes them all. Or lower model.max_pixels or the number of teachers "
        "(data.teachers.num_teachers), which makes them shorter, or leave them out with collator.max_tokens=100 "
        "collator.too_long=drop.",
    ]


def test_rows_and_steps_cost_about_the_same():
    def max_over_mean(groups):
        costs = [sum(COSTS[draw.index] for draw in group) for group in groups]
        return max(costs) / (sum(costs) / len(costs))

    *steps, _ = plan(num_samples=4096, max_row_tokens=16384, window=512)
    assert max_over_mean(rows_of(steps)) < 1.1
    assert max_over_mean([[draw for row in step for draw in row] for step in steps]) < 1.05


@pytest.mark.parametrize("name", ["max_row_tokens", "num_rows", "window"])
def test_every_size_must_be_positive(name):
    with pytest.raises(InputError, match=f"sampler.{name}=0"):
        plan(**{name: 0})


@pytest.mark.parametrize("balanced_share", [-0.1, 1.1])
def test_the_balanced_share_must_be_a_share(balanced_share):
    with pytest.raises(InputError, match=f"sampler.balanced_share={balanced_share}"):
        plan(balanced_share=balanced_share)
