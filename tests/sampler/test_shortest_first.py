import pytest

from bbu_train.errors import InputError
from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.sampler.shortest_first import ShortestFirst

INDICES = range(3, 103)


def num_tokens(draw):
    """Return a length that changes with the epoch, as that of an augmented view does."""
    return (draw.index * 37 + draw.epoch * 11) % 101


def unused(draw):
    raise AssertionError("only lengths are needed")


def visits(epoch, share=0.1, curriculum_epochs=4, seed=17):
    steps = ShortestFirst(8, share, curriculum_epochs, seed).epoch(epoch, INDICES, num_tokens, unused, unused)
    return [draw for step in steps for row in step for draw in row]


@pytest.mark.parametrize(("epoch", "number"), [(0, 10), (1, 32), (2, 55), (3, 78), (4, 100), (9, 100)])
def test_an_epoch_visits_the_shortest_samples_once_and_more_in_each_epoch(epoch, number):
    draws = visits(epoch)
    assert len(set(draws)) == len(draws) == number
    assert {draw.epoch for draw in draws} == {epoch}
    left_out = set(INDICES) - {draw.index for draw in draws}
    longest = max(map(num_tokens, draws))
    assert all(num_tokens(draws[0]._replace(index=index)) >= longest for index in left_out)


def test_with_share_1_it_equals_fixed_samples():
    expected = FixedSamples(8, 17).epoch(2, INDICES, unused, unused, unused)
    assert ShortestFirst(8, 1, 4, 17).epoch(2, INDICES, num_tokens, unused, unused) == expected


def test_the_shortest_samples_are_shuffled_by_seed():
    lengths = [num_tokens(draw) for draw in visits(3)]
    assert lengths != sorted(lengths)
    assert visits(3) == visits(3)
    assert visits(3) != visits(3, seed=18)
    assert set(visits(3)) == set(visits(3, seed=18))


def test_an_epoch_has_at_least_one_sample():
    steps = ShortestFirst(8, 0.1, 4, 17).epoch(0, [5, 6], num_tokens, unused, unused)
    assert [draw.index for step in steps for row in step for draw in row] == [min((5, 6), key=lambda i: i * 37 % 101)]


@pytest.mark.parametrize("share", [0, -0.5, 1.5, True])
def test_an_invalid_share_is_refused(share):
    with pytest.raises(InputError, match=f"sampler.share={share}"):
        ShortestFirst(8, share, 4, 17)


@pytest.mark.parametrize("curriculum_epochs", [0, -1])
def test_an_invalid_number_of_epochs_is_refused(curriculum_epochs):
    with pytest.raises(InputError, match=f"sampler.curriculum_epochs={curriculum_epochs}"):
        ShortestFirst(8, 0.1, curriculum_epochs, 17)


def test_a_step_without_samples_is_refused():
    with pytest.raises(InputError, match="sampler.num_samples=0"):
        ShortestFirst(0, 0.1, 4, 17)
