"""The teacher cache of a frozen vision tower changes no loss and no gradient."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bbu_train.collator.packed import PackedCollator
from bbu_train.collator.standard import PaddedCollator
from bbu_train.errors import InputError
from bbu_train.model.teacher_cache import TeacherCache
from bbu_train.ops import chunked_cross_entropy

MERGED, OUT = 4 * 64, 128  # widths of the tiny model's merger
# One windowed block, one with full attention and two layers: half of the tiny model.
SHALLOW = (
    "model.shape.vision_config.depth=2",
    "model.shape.vision_config.fullatt_block_indexes=[1]",
    "model.shape.text_config.num_hidden_layers=2",
)


@pytest.fixture(params=[PackedCollator, PaddedCollator])
def collate_apart(request, preprocessing):
    """A collator that keeps teachers' pictures apart."""
    return request.param(replace(preprocessing.picture_format, teachers_apart=True), 8192, "error")


@pytest.fixture
def make_frozen(make_model):
    """A function from GiB of cache to a model with a frozen tower, whose merger is trained."""

    def make(gib, *overrides):
        model = make_model(f"model.teacher_cache_gib={gib}", *SHALLOW, *overrides)
        for name, parameter in model.backbone.model.visual.named_parameters():
            parameter.requires_grad_(name.startswith("merger."))
        return model

    return make


def step(model, criterion, batch):
    """Return the losses, and the gradient of every parameter that is trained."""
    model.zero_grad()
    losses = criterion(model(batch), batch)
    criterion.objective(losses, batch.counts).backward()
    return {name: loss.detach() for name, loss in losses.items()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def tower_runs(model):
    """Return a list to which each run of the vision tower appends its number of patches."""
    runs = []
    model.backbone.model.visual.patch_embed.register_forward_hook(lambda _, args, out: runs.append(len(args[0])))
    return runs


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-5 * scale, msg=lambda text, n=name: n + text)


def assert_equal(actual, expected):
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.parametrize("head", ["head=detr", "head=none"])
def test_cached_and_uncached_steps_give_the_same_losses_and_gradients(
    make_frozen, make_criterion, collate_apart, collate, encoded, head
):
    criterion = make_criterion()
    expected = step(make_frozen(0, head), criterion, collate("packed", encoded))
    model = make_frozen(1, head)
    for _ in ("cold", "warm"):
        assert_close(step(model, criterion, collate_apart(encoded)), expected)
    assert "backbone.model.visual.merger.mlp.0.weight" in expected


def test_without_a_cache_pictures_encoded_apart_give_the_gradients_of_pictures_together(
    make_model, make_criterion, collate_apart, collate, encoded
):
    criterion = make_criterion()
    assert_close(
        step(make_model(), criterion, collate_apart(encoded)), step(make_model(), criterion, collate("packed", encoded))
    )


def test_a_warm_cache_gives_bit_for_bit_the_results_of_an_empty_one(
    make_frozen, make_criterion, collate_apart, encoded
):
    warm, criterion = make_frozen(1), make_criterion()
    with torch.no_grad():
        warm(collate_apart([encoded[3], encoded[0]]))  # in another batch, as in an evaluation
    assert_equal(step(warm, criterion, collate_apart(encoded)), step(make_frozen(1), criterion, collate_apart(encoded)))


def test_a_cached_picture_is_not_encoded_again_for_another_student(make_frozen, collate_apart, encoded):
    model = make_frozen(1)
    runs = tower_runs(model)
    rack, door, wall = encoded[0].grid_thw.prod(dim=1).tolist()
    model(collate_apart([encoded[0]]))
    assert runs == [wall, rack, door]
    runs.clear()
    model(collate_apart([encoded[1]]))  # the door again, for another student
    assert runs == [rack]


def test_students_pictures_are_encoded_together_at_every_step(make_frozen, collate_apart, encoded):
    model = make_frozen(1)
    model(collate_apart(encoded))
    runs = tower_runs(model)
    model(collate_apart(encoded))
    assert runs == [sum(int(sample.grid_thw[-1].prod()) for sample in encoded)]


@pytest.mark.parametrize("collate_apart", [PackedCollator], indirect=True)
def test_a_warm_step_does_the_counted_operations_and_one_more_merger_for_the_students(
    make_frozen, make_criterion, collate_apart, encoded, monkeypatch
):
    # Recomputation of logits in the backward pass is not useful work.
    monkeypatch.setattr(chunked_cross_entropy, "checkpoint", lambda function, *args, use_reentrant: function(*args))
    model, criterion, batch = make_frozen(1, "head=none"), make_criterion("loss=language"), collate_apart(encoded)
    step(model, criterion, batch)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(model, criterion, batch)
    extra_merger = 2 * (len(batch.vision.patches) // 4) * MERGED * (MERGED + OUT)
    # torch's plain attention also computes the half that a causal mask hides.
    unmasked = replace(batch.sizes, token_squares=2 * batch.sizes.token_squares)
    assert counter.get_total_flops() == model.training_flops(unmasked) + extra_merger


def test_a_small_cache_gives_bit_for_bit_the_results_of_a_large_one(
    make_frozen, make_criterion, collate_apart, encoded
):
    criterion, batch = make_criterion(), collate_apart(encoded)
    large = make_frozen(1, "head=none")
    expected = [step(large, criterion, batch) for _ in range(2)]
    for num_bytes in (1, 14_000):  # fits no picture; fits the rack or the door
        small = make_frozen(num_bytes / 2**30, "head=none")
        for values in expected:
            assert_equal(step(small, criterion, batch), values)
        assert small.teacher_cache.num_bytes <= num_bytes < large.teacher_cache.num_bytes
        assert (small.teacher_cache.num_bytes > 0) == (num_bytes > 1)


def test_the_least_recently_used_picture_is_evicted_first():
    cache = TeacherCache(3 * 400 / 2**30)

    def is_computed(key):
        computed = []
        cache.states(key, lambda: computed.append(key) or torch.zeros(5, 4, 5))  # 400 bytes
        return bool(computed)

    assert [is_computed(key) for key in (b"a", b"b", b"c", b"a", b"d")] == [True, True, True, False, True]
    assert [is_computed(key) for key in (b"a", b"c", b"d", b"b")] == [False, False, False, True]
    assert cache.num_bytes == 1200


def test_hits_are_the_hit_rate_since_the_last_call(make_frozen, collate_apart, encoded):
    model = make_frozen(1)
    assert model.teacher_cache.pop_hit_rate() == {}
    model(collate_apart([encoded[0]]))
    assert model.teacher_cache.pop_hit_rate() == {"teacher_cache_hit_rate": 0}
    model(collate_apart(encoded[:2] + encoded[3:]))
    assert model.teacher_cache.pop_hit_rate() == {"teacher_cache_hit_rate": 0.75}  # all except the teacher of d
    assert model.teacher_cache.pop_hit_rate() == {}


def test_a_cache_is_refused_if_the_vision_tower_is_trained(make_model, make_frozen):
    with pytest.raises(InputError, match=r"model.teacher_cache_gib=1 needs a frozen .*optimizer.groups.vision.lr=0"):
        make_model("model.teacher_cache_gib=1").check_teacher_cache()
    make_model().check_teacher_cache()
    make_frozen(1).check_teacher_cache()
