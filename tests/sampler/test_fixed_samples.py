import pytest

from bbu_train.errors import InputError
from bbu_train.sampler.fixed_samples import FixedSamples


def unused(draw):
    raise AssertionError("a fixed number of samples needs no lengths, costs or names")


def plan(num_samples=4, seed=17, epoch=0, indices=range(10)):
    return FixedSamples(num_samples, seed).epoch(epoch, indices, unused, unused, unused)


def order(steps):
    return [draw.index for step in steps for row in step for draw in row]


def test_an_epoch_visits_every_sample_once():
    assert sorted(order(plan(indices=[3, 5, 8, 13, 21]))) == [3, 5, 8, 13, 21]


@pytest.mark.parametrize(("num_samples", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (5, [5, 5]), (99, [10])])
def test_every_step_has_num_samples_and_the_last_the_remainder(num_samples, sizes):
    assert [sum(map(len, step)) for step in plan(num_samples)] == sizes


def test_every_draw_has_its_epoch():
    assert {draw.epoch for step in plan(epoch=3) for row in step for draw in row} == {3}


def test_the_same_seed_and_epoch_give_the_same_plan():
    assert plan() == plan()


@pytest.mark.parametrize("other", [{"seed": 18}, {"epoch": 1}])
def test_another_seed_or_epoch_gives_another_order(other):
    assert order(plan(indices=range(100))) != order(plan(indices=range(100), **other))


@pytest.mark.parametrize("num_samples", [0, -1])
def test_a_step_without_samples_is_refused(num_samples):
    with pytest.raises(InputError, match=f"sampler.num_samples={num_samples}"):
        FixedSamples(num_samples, 17)
