import gc
import logging
import math
import re
import weakref
from collections import Counter
from fractions import Fraction

import pytest

from bbu_train.errors import InputError
from bbu_train.runtime.seeds import generator
from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.sampler.shortest_first import ShortestFirst
from bbu_train.sampler.token_budget import TokenBudget
from bbu_train.training import planning
from bbu_train.training.loader import SampleSource
from bbu_train.types.samples import SampleVisit

SAMPLERS = [FixedSamples(3, 17), TokenBudget(600, 2, 4, 0.7, 17)]


@pytest.fixture
def make_source(builder, samples):
    """`teachers_of` gives one teacher in odd epochs, so that lengths change from epoch to epoch."""

    def teachers_of(sample, epoch):
        return (samples[3].student,) * (epoch % 2)

    def make(max_tokens=8192, too_long="error"):
        return SampleSource(
            samples,
            lambda sample, _: sample,
            teachers_of,
            builder,
            lambda num_tokens, _: num_tokens,
            max_tokens,
            too_long,
            seed=17,
        )

    return make


def draws_of(step):
    return [draw for row in step for draw in row]


def planned(sampler, source, num_steps, first=0):
    return list(planning.StepPlan(sampler, source, num_steps).starting_at(first))


# The plan


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_a_plan_has_exactly_the_steps_asked_for_across_epochs(make_source, num_steps):
    steps = planned(FixedSamples(3, 17), make_source(), num_steps)
    assert len(steps) == num_steps
    visited = Counter(draws_of(draws_of(steps)))
    assert max(visited.values()) == 1
    for epoch in range(num_steps // 2):  # two steps an epoch, of three samples and of one
        assert {draw.index for draw in visited if draw.epoch == epoch} == {0, 1, 2, 3}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_longer_plan_begins_with_the_shorter_one(make_source, sampler):
    longer = planned(sampler, make_source(), 11)
    for num_steps in range(1, 11):
        assert planned(sampler, make_source(), num_steps) == longer[:num_steps]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_plan_that_is_taken_up_at_any_step_goes_on_as_if_it_had_never_stopped(make_source, sampler):
    whole = planned(sampler, make_source(), 11)
    for first in range(12):
        assert planned(sampler, make_source(), 11, first) == whole[first:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_plan_of_epochs_has_their_steps_and_rounds_a_part_of_one_up(make_source, sampler):
    source = make_source()
    lengths = [
        len(sampler.epoch(epoch, source.indices_within_limit(epoch), source.num_tokens, source.cost, source.name))
        for epoch in range(4)
    ]
    for epochs in ("4", "1", "2.5", "0.1", "3.999"):
        whole, rest = divmod(Fraction(epochs), 1)
        num_steps = sum(lengths[:whole]) + (math.ceil(rest * lengths[whole]) if rest else 0)
        plan = planning.StepPlan(sampler, source, Fraction(epochs))
        assert plan.num_steps == num_steps
        assert list(plan.starting_at(0)) == planned(sampler, source, num_steps)
        assert plan.epoch_at(num_steps) >= float(Fraction(epochs))
    assert plan.epoch_at(0) == 0


class Watched:
    """A sampler that says which epochs it planned, and whose plans can be seen to be let go."""

    class Steps(list):
        pass

    def __init__(self):
        self.epochs = []
        self.plans = []

    def epoch(self, epoch, indices, *of_draw):
        steps = self.Steps(((SampleVisit(epoch, i),),) for i in indices)
        self.epochs.append(epoch)
        self.plans.append(weakref.ref(steps))
        return steps


def test_epochs_are_passes_over_the_data_also_where_the_sampler_visits_some_samples_alone(make_source):
    source = make_source()
    sampler = ShortestFirst(num_samples=1, share=0.25, curriculum_epochs=4, seed=17)
    for epochs in (Fraction(1), Fraction(5, 2)):
        plan = planning.StepPlan(sampler, source, epochs)
        num_visits = sum(len(row) for step in plan.starting_at(0) for row in step)
        assert num_visits == math.ceil(epochs * len(source.samples))
        assert plan.epoch_at(plan.num_steps) == num_visits / len(source.samples)


def test_epochs_are_planned_one_at_a_time_and_let_go(make_source):
    sampler = Watched()
    plan = planning.StepPlan(sampler, make_source(), 12)
    gc.collect()
    assert [steps() for steps in sampler.plans] == [None] * 3
    for i, _ in enumerate(plan.starting_at(0)):
        gc.collect()
        assert sampler.epochs[3:] == list(range(i // 4 + 1))
        assert sum(steps() is not None for steps in sampler.plans) <= 1


def test_a_resumed_run_plans_no_epoch_before_its_own(make_source):
    sampler = Watched()
    assert len(list(planning.StepPlan(sampler, make_source(), 12).starting_at(9))) == 3
    assert sampler.epochs == [0, 1, 2, 2]


def test_a_sample_that_is_too_long_in_a_later_epoch_is_found_when_the_plan_is_made(make_source, builder, samples):
    longest = max(builder.num_tokens(sample, ()) for sample in samples)
    planning.StepPlan(FixedSamples(4, 17), make_source(longest), 1)
    with pytest.raises(InputError, match="tokens in epoch 1"):
        planning.StepPlan(FixedSamples(4, 17), make_source(longest), 2)
    with pytest.raises(InputError, match=r"sampler.max_row_tokens=\d+ tokens: \d problems(.|\n)*tokens in epoch"):
        planning.StepPlan(TokenBudget(longest, 2, 4, 0.7, 17), make_source(), 99)


@pytest.mark.parametrize("key", ["collator.max_tokens", "sampler.max_row_tokens"])
def test_the_limit_that_a_refusal_names_takes_every_sample_of_every_epoch_and_of_validation(make_source, key):
    def plan(limit):
        is_row = key.startswith("sampler")
        sampler = TokenBudget(limit, 2, 4, 0.7, 17) if is_row else FixedSamples(2, 17)
        planning.plan_run(sampler, make_source(8192 if is_row else limit), 40, make_source(), 2, 8192)

    with pytest.raises(InputError, match=rf"{key}=(\d+) takes them all") as refused:
        plan(50)
    needed = int(re.search(rf"{key}=(\d+) takes", str(refused.value))[1])
    plan(needed)
    with pytest.raises(InputError, match=rf"{key}={needed} takes them all"):
        plan(needed - 1)


def test_no_limit_is_named_that_the_model_has_no_positions_for(make_source):
    long = make_source(50)
    with pytest.raises(
        InputError, match=r"positions for 60 tokens, so collator.max_tokens cannot be \d+. Lower model.max_p"
    ):
        planning.plan_run(FixedSamples(2, 17), make_source(), 2, long, 2, 60)


def test_what_is_left_out_is_in_no_step_and_is_counted_once_an_epoch(make_source, builder, samples, caplog):
    lengths = [builder.num_tokens(sample, ()) for sample in samples]
    source = make_source(max(lengths), too_long="drop")
    with caplog.at_level(logging.WARNING):
        steps = planned(FixedSamples(4, 17), source, 2)
    assert {draw.index for draw in draws_of(steps[0])} == {0, 1, 2, 3}
    assert {draw.index for draw in draws_of(steps[1])} == set(source.indices_within_limit(1))
    assert len(caplog.records) == 1
    num_left_out = 4 - len(draws_of(steps[1]))
    assert f"epoch 1: {num_left_out} samples over {max(lengths)} tokens are left out" in caplog.text


# Parts of a step


def random_step(seed, num_rows, most=6):
    random = generator("step", seed)
    sizes = random.integers(1, most + 1, num_rows).tolist()
    indices = iter(random.permutation(sum(sizes)).tolist())
    costs = random.integers(50, 2000, sum(sizes)).tolist()
    return tuple(tuple(SampleVisit(0, next(indices)) for _ in range(size)) for size in sizes), lambda draw: costs[
        draw.index
    ]


@pytest.mark.parametrize("num_rows", [1, 3, 8])
@pytest.mark.parametrize("num_parts", [1, 2, 4, 8, 60])
def test_the_parts_of_a_step_hold_each_of_its_samples_once(num_rows, num_parts):
    step, cost = random_step(num_rows, num_rows)
    parts = planning.split(step, num_parts, cost)
    assert len(parts) == num_parts
    assert sorted(draws_of(parts)) == sorted(draws_of(step))
    assert parts == planning.split(step, num_parts, cost)


@pytest.mark.parametrize("num_parts", [1, 2, 4, 8])
def test_planned_rows_stay_whole_where_there_are_enough(num_parts):
    step, cost = random_step("whole", 8)
    parts = planning.split(step, num_parts, cost)
    for row in step:
        assert sum(set(row) <= set(part) for part in parts) == 1


@pytest.mark.parametrize("seed", range(20))
def test_parts_differ_in_cost_by_at_most_one_sample(seed):
    step, cost = random_step(seed, 1, most=30)
    parts = planning.split(step, 4, cost)
    totals = [sum(map(cost, part)) for part in parts]
    assert max(totals) - min(totals) <= max(map(cost, step[0]))


def test_the_dearest_samples_go_to_different_parts():
    step = (tuple(SampleVisit(0, i) for i in range(6)),)
    parts = planning.split(step, 3, lambda draw: [10, 9, 8, 3, 2, 1][draw.index])
    assert {frozenset(draw.index for draw in part) for part in parts} == {
        frozenset({0, 5}),
        frozenset({1, 4}),
        frozenset({2, 3}),
    }


def test_parts_are_empty_where_samples_are_too_few():
    parts = planning.split(((SampleVisit(0, 0), SampleVisit(0, 1)),), 5, lambda draw: 10)
    assert sorted(map(len, parts)) == [0, 0, 0, 1, 1]


# The parts of each rank


@pytest.mark.parametrize("num_rows", [1, 8])
@pytest.mark.parametrize(("num_ranks", "num_micro_batches"), [(1, 1), (1, 4), (4, 1), (4, 2), (3, 3)])
def test_ranks_hold_each_sample_once_in_as_many_micro_batches(num_rows, num_ranks, num_micro_batches):
    step, cost = random_step(num_rows, num_rows)
    ranks = planning.assign_micro_batches(step, num_ranks, num_micro_batches, cost)
    assert [len(parts) for parts in ranks] == [num_micro_batches] * num_ranks
    assert sorted(draws_of(draws_of(ranks))) == sorted(draws_of(step))


def test_ranks_cost_the_same_where_micro_batches_cannot():
    costs = [8, 7, 6, 5, 4, 3, 2, 1]
    step = (tuple(SampleVisit(0, i) for i in range(8)),)
    ranks = planning.assign_micro_batches(step, 4, 2, lambda draw: costs[draw.index])
    assert [sum(costs[draw.index] for draw in draws_of(parts)) for parts in ranks] == [9, 9, 9, 9]
