import multiprocessing
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from hydra.utils import instantiate

from bbu_train.collator.packed import PackedCollator
from bbu_train.collator.standard import PaddedCollator
from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.sampler.fixed_samples import FixedSamples
from bbu_train.training import loader, planning
from bbu_train.types.batch import Counts
from bbu_train.types.samples import Role, Sample, SampleVisit


def own_teachers(sample, epoch):
    return sample.teachers


def as_it_is(sample, epoch):
    return sample


def cost_of(num_tokens, num_patches):
    return 10 * num_tokens + sum(num_patches)


@pytest.fixture
def make_source(builder, samples):
    def make(max_tokens=8192, too_long="error", samples=samples, teachers_of=own_teachers, view_of=as_it_is, seed=17):
        return loader.SampleSource(samples, view_of, teachers_of, builder, cost_of, max_tokens, too_long, seed)

    return make


@pytest.fixture
def lengths(builder, samples):
    return [builder.num_tokens(sample, sample.teachers) for sample in samples]


@pytest.fixture(scope="module")
def collators(preprocessing):
    limits = preprocessing.picture_format, 8192, "error"
    return {PackedCollator: PackedCollator(*limits), PaddedCollator: PaddedCollator(*limits)}


@pytest.fixture
def packed(collators):
    return collators[PackedCollator]


def draws_of(step):
    return [draw for row in step for draw in row]


# SampleSource


def test_an_encoded_sample_is_as_long_as_the_plan_says(make_source, lengths):
    source = make_source()
    for i, length in enumerate(lengths):
        assert source.num_tokens(SampleVisit(0, i)) == len(source.encode(SampleVisit(0, i)).input_ids) == length


def test_the_cost_of_a_sample_is_that_of_its_tokens_and_patches(make_source, samples):
    source = make_source()
    for i in range(len(samples)):
        encoded = source.encode(SampleVisit(0, i))
        assert source.cost(SampleVisit(0, i)) == 10 * len(encoded.input_ids) + len(encoded.patches)


@pytest.mark.parametrize(("num_kept", "again"), [(3, True), (4, True), (7, True), (8, False)])
def test_lengths_are_measured_once_an_epoch_and_as_many_are_kept_as_may_be(make_source, monkeypatch, num_kept, again):
    monkeypatch.setattr(loader, "MAX_CACHED_SIZES", num_kept)
    drawn = []

    def teachers_of(sample, epoch):
        drawn.append((sample.id, epoch))
        return sample.teachers

    source = make_source(teachers_of=teachers_of)
    for epoch in (0, 1):
        source.indices_within_limit(epoch)
        assert [
            source.num_tokens(SampleVisit(epoch, i)) > 0 < source.cost(SampleVisit(epoch, i)) for i in range(4)
        ] == [True] * 4
    assert Counter(drawn) == Counter((name, epoch) for name in "abcd" for epoch in (0, 1))
    source.num_tokens(SampleVisit(0, 2))
    assert drawn[8:] == [(name, 0) for name in "abcd"] * again


def test_teachers_are_those_of_the_epoch(make_source, samples):
    def alternating(sample, epoch):
        return (samples[0].student,) * (epoch % 2)

    source = make_source(teachers_of=alternating)
    for epoch in (0, 1, 2):
        encoded = source.encode(SampleVisit(epoch, 2))
        assert len(encoded.grid_thw) == 1 + epoch % 2
        assert source.num_tokens(SampleVisit(epoch, 2)) == len(encoded.input_ids)


@pytest.fixture(scope="module")
def crops(config):
    return instantiate(config("augmentation=crops", "augmentation.crop=1").augmentation, _convert_="all")


def test_views_are_those_of_the_epoch_and_as_long_as_the_plan_says(make_source, crops):
    source = make_source(view_of=crops)
    lengths = [[source.num_tokens(SampleVisit(epoch, i)) for i in range(4)] for epoch in range(5)]
    assert len(set(map(tuple, lengths))) == 5
    for epoch in range(5):
        for i in range(4):
            encoded = source.encode(SampleVisit(epoch, i))
            assert len(encoded.input_ids) == lengths[epoch][i]
            assert source.cost(SampleVisit(epoch, i)) == 10 * len(encoded.input_ids) + len(encoded.patches)


def test_only_students_of_the_training_split_are_augmented(builder, packed, samples, crops):
    teachers = TeacherDraw(teacher_ratio=0, num_teachers=0, num_validation_teachers=0, seed=0, validation_seed=0)
    data = Splits(samples, samples, teachers, {})
    train, validation = loader.sources(data, crops, builder, cost_of, packed)
    for i, sample in enumerate(samples):
        plain = builder.encode(builder.converse(sample, sample.teachers, with_answer=True))
        seen = validation.encode(SampleVisit(0, i))
        assert_identical(seen, replace(plain, noise=seen.noise))
        view = train.encode(SampleVisit(0, i))
        assert torch.equal(view.grid_thw[:-1], plain.grid_thw[:-1])
        num_teacher_patches = int(plain.grid_thw[:-1].prod(1).sum())
        assert torch.equal(view.patches[:num_teacher_patches], plain.patches[:num_teacher_patches])
        assert not torch.equal(view.patches[num_teacher_patches:], plain.patches[num_teacher_patches:])


def test_a_sample_of_exactly_the_limit_is_admitted(make_source, lengths):
    assert make_source(max_tokens=max(lengths)).indices_within_limit(0) == [0, 1, 2, 3]


def test_every_longer_sample_is_listed(make_source, lengths):
    with pytest.raises(InputError) as refused:
        make_source(max_tokens=min(lengths)).indices_within_limit(3)
    message = str(refused.value)
    assert "collator.max_tokens" in message
    assert "3 problems" in message
    assert "c: " not in message
    for name, length in zip("abd", (lengths[0], lengths[1], lengths[3]), strict=True):
        assert f"{name}: {length} tokens in epoch 3" in message
    assert f"collator.max_tokens={max(lengths)} takes them all" in message


def test_longer_samples_can_be_left_out(make_source, lengths):
    assert make_source(max_tokens=min(lengths), too_long="drop").indices_within_limit(0) == [2]


def test_a_run_with_every_sample_left_out_is_refused(make_source, lengths):
    with pytest.raises(
        InputError, match=rf"No sample of epoch 0 has .*\.max_tokens=\d+ .*Give collator.max_tokens={max(lengths)}"
    ):
        make_source(max_tokens=min(lengths) - 1, too_long="drop").indices_within_limit(0)


# Batches


def loaded(source, collator, steps, num_micro_batches=1, rank=0, num_ranks=1, num_workers=0):
    return list(loader.batches(source, collator, steps, num_micro_batches, rank, num_ranks, num_workers))


@pytest.mark.parametrize(("num_ranks", "num_micro_batches"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_ranks_and_micro_batches_together_visit_exactly_the_samples_of_each_step(
    make_source, packed, samples, num_ranks, num_micro_batches
):
    source = make_source()
    steps = list(planning.StepPlan(FixedSamples(3, 17), source, 2).starting_at(0))
    ranks = [loaded(source, packed, steps, num_micro_batches, rank, num_ranks) for rank in range(num_ranks)]
    for i, step in enumerate(steps):
        micro_batches = [batch for rank in ranks for batch in rank[i]]
        assert [len(rank[i]) for rank in ranks] == [num_micro_batches] * num_ranks
        visited = [
            name
            for batch in micro_batches
            for name, is_annotated in zip(batch.sample_ids, batch.annotated.tolist(), strict=True)
            if is_annotated
        ]
        assert sorted(visited) == sorted(samples[draw.index].id for draw in draws_of(step))
        total = sum((batch.counts for batch in micro_batches), Counts(0, 0, 0, 0))
        assert total == packed([source.encode(draw) for draw in draws_of(step)]).counts


def test_steps_are_asked_for_as_the_workers_get_to_them(make_source, packed):
    asked = []

    def steps():
        for i in range(40):
            asked.append(i)
            yield ((SampleVisit(0, i % 4),),)

    batches = loader.batches(make_source(), packed, steps(), 1, 0, 1, num_workers=0)
    for i in range(3):
        next(batches)
        assert asked == list(range(i + 1))


def test_a_stand_in_for_an_empty_part_carries_no_loss(make_source, packed, samples):
    (micro_batches,) = loaded(make_source(), packed, [((SampleVisit(0, 0),),)], num_micro_batches=3)
    filled = [batch for batch in micro_batches if batch.counts.samples]
    stand_ins = [batch for batch in micro_batches if not batch.counts.samples]
    assert (len(filled), len(stand_ins)) == (1, 2)
    for batch in stand_ins:
        assert batch.sample_ids == ("a",)
        assert batch.counts == Counts(0, 0, 0, 0)
        assert batch.label_roles.tolist() == [Role.NONE]
        assert not batch.annotated.any()
        assert len(batch.vision.patches)


def assert_identical(a, b):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)
        elif hasattr(x, "to"):
            assert_identical(x, y)
        else:
            assert x == y


@pytest.mark.parametrize("kind", [PackedCollator, PaddedCollator])
def test_batches_are_the_same_bits_with_any_number_of_workers(make_source, collators, kind, crops):
    source = make_source(view_of=crops)
    steps = list(planning.StepPlan(FixedSamples(3, 17), source, 4).starting_at(0))
    alone, helped = (loaded(source, collators[kind], steps, 2, num_workers=num_workers) for num_workers in (0, 2))
    assert len(alone) == len(helped) == 4
    for a, b in zip(alone, helped, strict=True):
        assert len(a) == len(b) == 2
        for x, y in zip(a, b, strict=True):
            assert_identical(x, y)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_users_error_is_the_same_from_a_worker(make_source, packed, samples, tmp_path, num_workers):
    gone = Sample("gone", replace(samples[1].student, path=tmp_path / "gone.png"), ())
    batches = loader.batches(
        make_source(samples=(samples[0], gone)),
        packed,
        [((SampleVisit(0, i),),) for i in range(2)],
        1,
        0,
        1,
        num_workers,
    )
    assert next(batches)[0].sample_ids == ("a",)
    with pytest.raises(InputError) as refused:
        next(batches)
    del batches  # so that its workers end now, and not whenever the traceback is collected
    assert str(refused.value) == (
        f"{tmp_path / 'gone.png'}: No such file or directory; its header could be read when the data was checked."
    )


def test_no_worker_outlives_its_batches(make_source, packed):
    before = set(multiprocessing.active_children())
    assert len(loaded(make_source(), packed, [((SampleVisit(0, 0),),)] * 3, num_workers=2)) == 3
    assert set(multiprocessing.active_children()) <= before


def test_noise_depends_on_the_seed_the_epoch_and_the_sample_alone(make_source):
    def noise(index, epoch=0, **how):
        return make_source(**how).encode(SampleVisit(epoch, index)).noise

    assert noise(1).shape == (2, 4)
    assert torch.equal(noise(1), noise(1))
    assert not torch.equal(noise(1), noise(1, epoch=1))
    assert not torch.equal(noise(1), noise(1, seed=18))
    assert not torch.equal(noise(0)[:2], noise(1))
