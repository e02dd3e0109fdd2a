"""What a frozen tower makes of teachers' pictures is kept, and nothing but the time changes by it."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bbu_train.collator.packed import Packed
from bbu_train.collator.standard import Standard
from bbu_train.errors import InputError
from bbu_train.model.teacher_cache import TeacherCache
from bbu_train.ops import chunked_cross_entropy

MERGED, OUT = 4 * 64, 128  # widths of the tiny model's merger


@pytest.fixture(params=[Packed, Standard])
def lay(request, preprocessing):
    return request.param(replace(preprocessing.picture_format, teachers_apart=True), 8192, "error")


@pytest.fixture
def make_frozen(make_model):
    """A function from GiB of cache to a model with a frozen tower, whose merger is trained."""

    def make(gib, *overrides):
        model = make_model(f"model.teacher_cache_gib={gib}", *overrides)
        for name, parameter in model.backbone.model.visual.named_parameters():
            parameter.requires_grad_(name.startswith("merger."))
        return model

    return make


def step(model, criterion, batch):
    """Losses, and the gradient of every parameter that is trained."""
    model.zero_grad()
    losses = criterion(model(batch), batch)
    criterion.objective(losses, batch.counts).backward()
    return {name: loss.detach() for name, loss in losses.items()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def tower_runs(model):
    """A list that grows by the patches of each run of the vision tower."""
    runs = []
    model.backbone.model.visual.patch_embed.register_forward_hook(lambda _, args, out: runs.append(len(args[0])))
    return runs


def assert_close(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5 * scale, msg=lambda text, n=name: n + text)


def assert_equal(ours, expected):
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


@pytest.mark.parametrize("head", ["head=detr", "head=none"])
def test_cached_and_uncached_steps_give_the_same_losses_and_gradients(
    make_frozen, make_criterion, lay, collate, encoded, head
):
    criterion = make_criterion()
    expected = step(make_frozen(0, head), criterion, collate("packed", encoded))
    model = make_frozen(1, head)
    for _ in ("cold", "warm"):
        assert_close(step(model, criterion, lay(encoded)), expected)
    assert "backbone.model.visual.merger.mlp.0.weight" in expected


def test_without_a_cache_pictures_apart_train_the_tower_as_pictures_together(
    make_model, make_criterion, lay, collate, encoded
):
    criterion = make_criterion()
    assert_close(step(make_model(), criterion, lay(encoded)), step(make_model(), criterion, collate("packed", encoded)))


def test_a_warm_cache_gives_bit_for_bit_what_an_empty_one_gives(make_frozen, make_criterion, lay, encoded):
    warm, criterion = make_frozen(1), make_criterion()
    with torch.no_grad():
        warm(lay([encoded[3], encoded[0]]))  # as an evaluation would, in other company
    assert_equal(step(warm, criterion, lay(encoded)), step(make_frozen(1), criterion, lay(encoded)))


def test_a_picture_that_was_seen_is_not_seen_again_whoever_it_teaches(make_frozen, lay, encoded):
    model = make_frozen(1)
    runs = tower_runs(model)
    rack, door, wall = encoded[0].grid_thw.prod(dim=1).tolist()
    model(lay([encoded[0]]))
    assert runs == [wall, rack, door]
    runs.clear()
    model(lay([encoded[1]]))  # the door again, for another student
    assert runs == [rack]


def test_the_students_go_through_the_tower_together_and_at_every_step(make_frozen, lay, encoded):
    model = make_frozen(1)
    model(lay(encoded))
    runs = tower_runs(model)
    model(lay(encoded))
    assert runs == [sum(int(sample.grid_thw[-1].prod()) for sample in encoded)]


@pytest.mark.parametrize("lay", [Packed], indirect=True)
def test_a_warm_step_does_what_is_counted_and_runs_the_merger_of_the_students_once_more(
    make_frozen, make_criterion, lay, encoded, monkeypatch
):
    # Chunks of logits are computed again in the backward pass, which is not useful.
    monkeypatch.setattr(chunked_cross_entropy, "checkpoint", lambda function, *given, use_reentrant: function(*given))
    model, criterion, batch = make_frozen(1, "head=none"), make_criterion("loss=language"), lay(encoded)
    step(model, criterion, batch)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(model, criterion, batch)
    again = 2 * (len(batch.vision.patches) // 4) * MERGED * (MERGED + OUT)
    # torch's plain attention computes the half that a causal mask hides, too.
    unmasked = replace(batch.sizes, token_squares=2 * batch.sizes.token_squares)
    assert counter.get_total_flops() == model.training_flops(unmasked) + again


@pytest.mark.parametrize("num_bytes", [1, 14_000])  # less than any picture; the rack or the door
def test_a_small_cache_gives_bit_for_bit_what_a_large_one_gives(make_frozen, make_criterion, lay, encoded, num_bytes):
    criterion = make_criterion()
    small, large = make_frozen(num_bytes / 2**30), make_frozen(1)
    for _ in range(2):
        assert_equal(step(small, criterion, lay(encoded)), step(large, criterion, lay(encoded)))
    assert small.teacher_cache.num_bytes <= num_bytes < large.teacher_cache.num_bytes
    assert (small.teacher_cache.num_bytes > 0) == (num_bytes > 1)


def test_what_was_used_longest_ago_goes_first():
    cache = TeacherCache(3 * 400 / 2**30)

    def made(key):
        computed = []
        cache.states(key, lambda: computed.append(key) or torch.zeros(5, 4, 5))  # 400 bytes
        return bool(computed)

    assert [made(key) for key in (b"a", b"b", b"c", b"a", b"d")] == [True, True, True, False, True]
    assert [made(key) for key in (b"a", b"c", b"d", b"b")] == [False, False, False, True]
    assert cache.num_bytes == 1200


def test_hits_are_the_share_of_pictures_since_they_were_last_asked_for(make_frozen, lay, encoded):
    model = make_frozen(1)
    assert model.teacher_cache.hits() == {}
    model(lay([encoded[0]]))
    assert model.teacher_cache.hits() == {"teacher_cache_hits": 0}
    model(lay(encoded[:2] + encoded[3:]))
    assert model.teacher_cache.hits() == {"teacher_cache_hits": 0.75}  # all but the teacher of d
    assert model.teacher_cache.hits() == {}


def test_a_cache_for_a_tower_that_is_trained_is_refused(make_model, make_frozen):
    with pytest.raises(InputError, match=r"model.teacher_cache_gib=1 needs a frozen .*optimizer.groups.vision.lr=0"):
        make_model("model.teacher_cache_gib=1").check_teacher_cache()
    make_model().check_teacher_cache()
    make_frozen(1).check_teacher_cache()
