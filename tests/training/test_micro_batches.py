"""The largest micro-batch of a plan is found without encoding a sample, and its sizes are those of its batch."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.training import micro_batches, planning, setup


@pytest.fixture
def inputs(config, samples):
    """A function from overrides to the inputs of a run on the four samples."""

    def make(*overrides):
        fields = {"teacher_ratio": 0, "num_teachers": 0, "num_validation_teachers": 0}
        splits = Splits(samples, samples, TeacherDraw(**fields, seed=1, validation_seed=1), {})
        return setup.prepare(config("steps=3", "schedule.num_warmup_steps=1", *overrides), setup.RunData(splits, {}))

    return make


@pytest.mark.parametrize("collator", ["collator=packed", "collator=standard"])
@pytest.mark.parametrize("cache", [(), ("model.teacher_cache_gib=1",)])
def test_the_sizes_of_a_plan_are_those_of_its_batches(inputs, collator, cache):
    run = inputs(collator, *cache)
    visits = [visit for row in planning.in_order(run.train, 4)[0] for visit in row]
    planned = [tuple(visits), tuple(visits[1:3]), (visits[2],)]
    sizes = micro_batches.measure(planned, run.train, run.collator)
    for i, each in enumerate(planned):
        exact = micro_batches.sizes_of(run.collator([run.train.encode(visit) for visit in each]))
        known = type(exact)(*(int(column[i]) for column in astuple(sizes)))
        assert known.memory_text >= exact.memory_text
        # A batch without captions has one of length 1, which takes part in a loss of weight 0.
        assert replace(known, memory_text=0, caption_tokens=max(1, known.caption_tokens)) == replace(
            exact, memory_text=0
        )


@pytest.mark.parametrize(("num_ranks", "num_micro_batches"), [(1, 1), (1, 2), (2, 2)])
def test_the_largest_micro_batch_is_the_largest_that_any_rank_runs(inputs, num_ranks, num_micro_batches):
    run = inputs("sampler.num_samples=3")

    def score(sizes):
        return 3 * sizes.positions + sizes.patches + sizes.samples * sizes.max_objects * sizes.caption_tokens

    found = micro_batches.find_largest(
        run.plan.starting_at(0), run.train, run.collator, num_ranks * num_micro_batches, score
    )
    dealt = [
        visits
        for step in run.plan.starting_at(0)
        for rank in planning.assign_micro_batches(step, num_ranks, num_micro_batches, run.train.cost)
        for visits in rank
        if visits
    ]
    scores = score(micro_batches.measure(dealt, run.train, run.collator))
    assert found.score == scores.max() == score(found.sizes)
    assert found.visits == dealt[int(np.argmax(scores))] or found.score == scores[dealt.index(found.visits)]


def test_the_most_samples_of_a_rank_are_those_of_the_longest_step(inputs):
    plan = inputs("sampler.num_samples=3").plan
    assert micro_batches.most_samples(plan.starting_at(0), 1) == 3
    assert micro_batches.most_samples(plan.starting_at(0), 2) == 2
