"""Both collators: the same Batch content, wherever the samples lie."""

from dataclasses import fields, replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from bbu_train.collator.packed import Packed
from bbu_train.collator.standard import Standard
from bbu_train.model.shape import configuration
from bbu_train.types.batch import Counts, Movable
from bbu_train.types.samples import Role


@pytest.fixture
def standard(preprocessing):
    return Standard(preprocessing.picture_format, 8192, "error")


@pytest.fixture
def packed(preprocessing):
    return Packed(preprocessing.picture_format, 8192, "error")


@pytest.fixture(params=["standard", "packed"])
def lay(request):
    """Each collator: a function from samples to a Batch."""
    return request.getfixturevalue(request.param)


def places(batch, i):
    """The flattened positions of sample i."""
    return (batch.sample_of_token.flatten() == i).nonzero()[:, 0]


def supervision(batch, i):
    """(position within the sample, label, role) of each supervised position of sample i."""
    place = places(batch, i)
    triples = zip(batch.supervised_positions.tolist(), batch.labels.tolist(), batch.label_roles.tolist(), strict=True)
    return [(p - int(place[0]), label, role) for p, label, role in triples if place[0] <= p <= place[-1]]


def content(batch, i):
    """All that a Batch says of sample i, without where it lies."""
    place, memory = places(batch, i), batch.memory
    objects = batch.sample_of_object == i
    return {
        "id": batch.sample_ids[i],
        "input_ids": batch.input_ids.flatten()[place].tolist(),
        "position_ids": batch.position_ids.flatten(1)[:, place].tolist(),
        "image_positions": [p - int(place[0]) for p in batch.image_positions.tolist() if p in place],
        "supervision": supervision(batch, i),
        "boxes": batch.boxes_cxcywh[objects].tolist(),
        "captions": [[token for token in row if token != -100] for row in batch.caption_ids[objects].tolist()],
        "annotated": bool(batch.annotated[i]),
        "vision": batch.vision.patches.unflatten(0, (-1, 4))[memory.vision[i][memory.vision_mask[i]]].tolist(),
        "centers": memory.vision_centers[i][memory.vision_mask[i]].tolist(),
        "text": (memory.text[i][memory.text_mask[i]] - place[0]).tolist(),
        "text_positions": memory.text_positions[i][memory.text_mask[i]].tolist(),
    }


def assert_same(a, b, change=lambda tensor: tensor):
    """Two Movables agree in every field, tensors of `a` after `change`."""
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, Movable):
            assert_same(x, y, change)
        elif isinstance(x, Tensor):
            assert torch.equal(change(x), y), field.name
            assert change(x).dtype == y.dtype
        else:
            assert x == y, field.name


def test_both_collators_say_the_same_of_each_sample_and_of_the_pictures(standard, packed, encoded):
    padded, end_to_end = standard(encoded), packed(encoded)
    for i in range(len(encoded)):
        assert content(padded, i) == content(end_to_end, i)
    assert_same(padded.vision, end_to_end.vision)
    assert padded.counts == end_to_end.counts
    assert padded.objects_per_sample == end_to_end.objects_per_sample


def test_a_sample_says_the_same_alone_as_among_others(lay, encoded):
    together = lay(encoded)
    for i, sample in enumerate(encoded):
        assert content(lay([sample]), 0) == content(together, i)


def test_a_batch_holds_exactly_what_was_encoded(lay, encoded):
    batch = lay(encoded)
    for i, sample in enumerate(encoded):
        said = content(batch, i)
        assert said["id"] == sample.sample_id
        assert said["input_ids"] == sample.input_ids.tolist()
        assert said["position_ids"] == [list(range(len(sample.input_ids))), *sample.position_ids.tolist()]
        assert said["image_positions"] == sample.image_positions.tolist()
        assert said["boxes"] == sample.boxes_cxcywh.tolist()
        assert said["captions"] == [caption.tolist() for caption in sample.captions]
        assert said["annotated"] == sample.annotated
    assert torch.equal(batch.vision.patches, torch.cat([sample.patches for sample in encoded]))
    assert torch.equal(batch.vision.grid_thw, torch.cat([sample.grid_thw for sample in encoded]))
    assert batch.objects_per_sample == tuple(len(sample.captions) for sample in encoded)


def test_segments_bound_every_sample_and_every_run_of_padding(lay, encoded):
    batch = lay(encoded)
    bounds = batch.cu_seqlens.tolist()
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == max(b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True))
    owners = batch.sample_of_token.flatten()
    segments = [owners[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert sum(map(len, segments)) == owners.numel()
    assert all(len(set(segment)) == 1 for segment in segments)
    lengths = {segment[0]: len(segment) for segment in segments if segment[0] >= 0}
    assert lengths == {i: len(sample.input_ids) for i, sample in enumerate(encoded)}


def test_packed_samples_lie_in_one_row_without_padding(packed, encoded):
    batch = packed(encoded)
    assert batch.input_ids.shape == (1, sum(len(sample.input_ids) for sample in encoded))
    assert (batch.sample_of_token >= 0).all()


def test_standard_samples_have_a_row_each_as_long_as_the_longest(standard, encoded):
    batch = standard(encoded)
    longest = max(len(sample.input_ids) for sample in encoded)
    assert batch.input_ids.shape == (len(encoded), longest)
    for i, sample in enumerate(encoded):
        num_tokens = len(sample.input_ids)
        assert batch.sample_of_token[i].tolist() == [i] * num_tokens + [-1] * (longest - num_tokens)


def test_padding_belongs_to_no_sample_and_is_read_by_nothing(standard, encoded):
    batch = standard(encoded)
    padding = (batch.sample_of_token.flatten() < 0).nonzero()[:, 0]
    assert len(padding)
    used = [batch.image_positions, batch.supervised_positions, batch.memory.text[batch.memory.text_mask]]
    assert not torch.isin(torch.cat(used), padding).any()
    assert not batch.position_ids.flatten(1)[:, padding].any()


def test_supervised_positions_predict_exactly_the_answers(lay, encoded):
    batch = lay(encoded)
    for i, sample in enumerate(encoded):
        answered = sample.roles.nonzero()[:, 0].tolist()
        expected = [(t - 1, int(sample.input_ids[t]), int(sample.roles[t])) for t in answered]
        assert supervision(batch, i) == expected
    assert len(batch.labels) == sum(int((sample.roles > 0).sum()) for sample in encoded)


def test_the_first_token_of_a_sample_is_never_predicted(lay, encoded):
    everything = [replace(sample, roles=torch.ones_like(sample.roles)) for sample in encoded]
    batch = lay(everything)
    for i, sample in enumerate(everything):
        assert [p for p, _, _ in supervision(batch, i)] == list(range(len(sample.input_ids) - 1))


def test_counts_are_those_of_the_roles_and_the_annotations(lay, encoded):
    def num_tokens(role):
        return sum(int((sample.roles == role).sum()) for sample in encoded)

    expected = Counts(num_tokens(Role.TEACHER), num_tokens(Role.STUDENT), 3 + 2 + 0 + 1, 4)
    assert lay(encoded).counts == expected
    assert lay(encoded[:1]).counts + lay(encoded[1:]).counts == expected


def test_the_memory_holds_the_students_image_tokens_only(lay, encoded):
    batch, start = lay(encoded), 0
    for i, sample in enumerate(encoded):
        first_of_student = start + int(sample.grid_thw[:-1].prod(dim=1).sum()) // 4
        start += len(sample.patches) // 4
        seen = batch.memory.vision[i][batch.memory.vision_mask[i]]
        assert seen.tolist() == list(range(first_of_student, start))


def test_the_memory_holds_the_text_before_the_answer_only(lay, encoded):
    batch = lay(encoded)
    for i, sample in enumerate(encoded):
        seen = batch.memory.text[i][batch.memory.text_mask[i]]
        assert seen.tolist() == places(batch, i)[: sample.memory_end].tolist()
        answer = places(batch, i)[sample.roles == Role.STUDENT]
        assert seen.max() < answer.min()


def test_padding_of_the_memory_points_into_the_batch(lay, encoded):
    memory = lay(encoded).memory
    assert 0 <= memory.text.min() <= memory.text.max() < lay(encoded).input_ids.numel()
    assert 0 <= memory.vision.min() <= memory.vision.max() < len(lay(encoded).image_positions)
    assert not memory.text_mask.all()
    assert not memory.vision_mask.all()


def test_padding_of_the_memory_reads_each_entry_of_its_sample_as_often_as_the_others(lay, encoded):
    memory = lay(encoded).memory
    for indices, mask in ((memory.vision, memory.vision_mask), (memory.text, memory.text_mask)):
        for its, real in zip(indices, mask, strict=True):
            read, times = its.unique(return_counts=True)
            assert read.tolist() == its[real].tolist()
            assert times.max() - times.min() <= 1


def test_vision_centres_are_the_middles_of_the_image_tokens_in_reading_order(lay, encoded):
    batch = lay(encoded)
    for i, sample in enumerate(encoded):
        _, height, width = (sample.grid_thw[-1] // torch.tensor([1, 2, 2])).tolist()
        expected = [((x + 0.5) / width, (y + 0.5) / height) for y in range(height) for x in range(width)]
        torch.testing.assert_close(
            batch.memory.vision_centers[i][batch.memory.vision_mask[i]], torch.tensor(expected), rtol=0, atol=1e-6
        )


def test_captions_are_padded_with_the_ignored_label(lay, encoded):
    batch = lay(encoded)
    captions = [caption for sample in encoded for caption in sample.captions]
    assert batch.caption_ids.shape == (6, max(map(len, captions)))
    for row, caption in zip(batch.caption_ids.tolist(), captions, strict=True):
        assert row == caption.tolist() + [-100] * (len(row) - len(caption))


def test_a_batch_without_any_object_has_empty_targets_and_still_counts_its_sample(lay, encoded):
    batch = lay([encoded[2]])
    assert batch.boxes_cxcywh.shape == (0, 4)
    assert batch.caption_ids.shape == (0, 1)
    assert batch.sample_of_object.tolist() == []
    assert batch.objects_per_sample == (0,)
    assert batch.annotated.tolist() == [True]
    assert batch.counts == Counts(0, int((encoded[2].roles == Role.STUDENT).sum()), 0, 1)
    assert batch.counts.student_tokens > 0


def test_a_batch_of_unsupervised_samples_has_one_position_of_no_role_and_counts_nothing(lay, encoded):
    batch = lay([sample.unsupervised() for sample in encoded[:2]])
    assert (len(batch.supervised_positions), batch.label_roles.tolist()) == (1, [Role.NONE])
    assert batch.counts == Counts(0, 0, 0, 0)
    assert batch.annotated.tolist() == [False, False]
    assert batch.boxes_cxcywh.shape == (0, 4)


@pytest.fixture(scope="module")
def stock(config):
    torch.manual_seed(0)
    shape = OmegaConf.to_container(config().model.shape, resolve=True)
    return Qwen2_5_VLForConditionalGeneration(configuration(None, "random", shape)).model.visual


@torch.no_grad()
def test_vision_indices_are_those_that_the_stock_tower_computes(packed, encoded, stock):
    vision = packed(encoded).vision
    seen = {}

    def keep(name):
        return lambda module, args, kwargs: seen.setdefault(name, (args, kwargs)) and None

    full, window = stock.blocks[1], stock.blocks[0]
    handles = [
        module.register_forward_pre_hook(keep(name), with_kwargs=True)
        for name, module in (("rotary", stock.rotary_pos_emb), ("full", full), ("window", window))
    ]
    pixels = (vision.patches.float() / 255).unflatten(1, (3, 1, 196)).expand(-1, -1, 2, -1).flatten(1)
    features = stock(pixels, grid_thw=vision.grid_thw).pooler_output
    for handle in handles:
        handle.remove()
    assert torch.equal(vision.position_ids, seen["rotary"][0][1])
    for name, ours, longest in (
        ("full", vision.cu_seqlens, vision.max_seqlen),
        ("window", vision.cu_window_seqlens, vision.max_window_seqlen),
    ):
        stocks = seen[name][1]["cu_seqlens"]
        assert torch.equal(ours, stocks)
        assert longest == stocks.diff().max()
    given = {f.name: getattr(vision, f.name) for f in fields(vision) if f.name not in ("patches", "grid_thw")}
    assert torch.equal(stock(pixels, grid_thw=vision.grid_thw, **given).pooler_output, features)
    turned = given | {"window_index": vision.window_index.flip(0)}
    assert not torch.allclose(stock(pixels, grid_thw=vision.grid_thw, **turned).pooler_output, features, atol=1e-3)


def test_moving_a_batch_keeps_everything(lay, encoded):
    batch = lay(encoded)
    assert_same(batch, batch.to("cpu"))
    assert_same(batch, batch._map(lambda tensor: tensor.flip(0)), change=lambda tensor: tensor.flip(0))


def test_every_tensor_of_a_batch_moves(lay, encoded):
    def tensors(movable):
        for value in (getattr(movable, field.name) for field in fields(movable)):
            yield from [value] if isinstance(value, Tensor) else tensors(value) if isinstance(value, Movable) else []

    moved = list(tensors(lay(encoded).to("meta")))
    assert len(moved) > 20  # those of the vision inputs and of the memory index too
    assert all(tensor.is_meta for tensor in moved)
