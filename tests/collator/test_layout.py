"""Both collators give the same Batch content, wherever the samples lie."""

from dataclasses import fields, replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from bbu_train.collator.packed import PackedCollator
from bbu_train.collator.standard import PaddedCollator
from bbu_train.model.shape import configuration
from bbu_train.types.batch import Counts, Movable
from bbu_train.types.samples import Role


@pytest.fixture
def standard(preprocessing):
    return PaddedCollator(preprocessing.picture_format, 8192, "error")


@pytest.fixture
def packed(preprocessing):
    return PackedCollator(preprocessing.picture_format, 8192, "error")


@pytest.fixture(params=["standard", "packed"])
def collator(request):
    """Each of the two collators."""
    return request.getfixturevalue(request.param)


def positions_of(batch, i):
    """Return the flattened positions of sample i."""
    return (batch.sample_of_token.flatten() == i).nonzero()[:, 0]


def supervision(batch, i):
    """Return (position within the sample, label, role) of each supervised position of sample i."""
    first, last = positions_of(batch, i)[[0, -1]].tolist()
    triples = zip(batch.supervised_positions.tolist(), batch.labels.tolist(), batch.label_roles.tolist(), strict=True)
    return [(p - first, label, role) for p, label, role in triples if first <= p <= last]


def content(batch, i):
    """Return everything that a Batch has for sample i, relative to its first position."""
    positions, memory = positions_of(batch, i), batch.memory
    objects = batch.sample_of_object == i
    return {
        "id": batch.sample_ids[i],
        "input_ids": batch.input_ids.flatten()[positions].tolist(),
        "position_ids": batch.position_ids.flatten(1)[:, positions].tolist(),
        "image_positions": [p - int(positions[0]) for p in batch.image_positions.tolist() if p in positions],
        "supervision": supervision(batch, i),
        "boxes": batch.boxes_cxcywh[objects].tolist(),
        "captions": [[token for token in row if token != -100] for row in batch.caption_ids[objects].tolist()],
        "annotated": bool(batch.annotated[i]),
        "vision": batch.vision.patches.unflatten(0, (-1, 4))[memory.vision[i][memory.vision_mask[i]]].tolist(),
        "centers": memory.vision_centers[i][memory.vision_mask[i]].tolist(),
        "text": (memory.text[i][memory.text_mask[i]] - positions[0]).tolist(),
        "text_positions": memory.text_positions[i][memory.text_mask[i]].tolist(),
    }


def assert_same(a, b, change=lambda tensor: tensor):
    """Assert that two Movables are equal in every field, the tensors of `a` after `change`."""
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, Movable):
            assert_same(x, y, change)
        elif isinstance(x, Tensor):
            assert torch.equal(change(x), y), field.name
            assert change(x).dtype == y.dtype
        else:
            assert x == y, field.name


def test_both_collators_give_the_same_content_for_each_sample_and_the_same_pictures(standard, packed, encoded):
    standard_batch, packed_batch = standard(encoded), packed(encoded)
    for i in range(len(encoded)):
        assert content(standard_batch, i) == content(packed_batch, i)
    assert_same(standard_batch.vision, packed_batch.vision)
    assert standard_batch.counts == packed_batch.counts
    assert standard_batch.objects_per_sample == packed_batch.objects_per_sample


def test_the_content_of_a_sample_is_the_same_alone_and_among_others(collator, encoded):
    together = collator(encoded)
    for i, sample in enumerate(encoded):
        assert content(collator([sample]), 0) == content(together, i)


def test_a_batch_holds_exactly_what_was_encoded(collator, encoded):
    batch = collator(encoded)
    for i, sample in enumerate(encoded):
        actual = content(batch, i)
        assert actual["id"] == sample.sample_id
        assert actual["input_ids"] == sample.input_ids.tolist()
        assert actual["position_ids"] == [list(range(len(sample.input_ids))), *sample.position_ids.tolist()]
        assert actual["image_positions"] == sample.image_positions.tolist()
        assert actual["boxes"] == sample.boxes_cxcywh.tolist()
        assert actual["captions"] == [caption.tolist() for caption in sample.captions]
        assert actual["annotated"] == sample.annotated
    assert torch.equal(batch.vision.patches, torch.cat([sample.patches for sample in encoded]))
    assert torch.equal(batch.vision.grid_thw, torch.cat([sample.grid_thw for sample in encoded]))
    assert batch.objects_per_sample == tuple(len(sample.captions) for sample in encoded)


def test_every_sample_and_every_run_of_padding_is_a_segment(collator, encoded):
    batch = collator(encoded)
    bounds = batch.cu_seqlens.tolist()
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == max(b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True))
    sample_of_token = batch.sample_of_token.flatten()
    segments = [sample_of_token[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert sum(map(len, segments)) == sample_of_token.numel()
    assert all(len(set(segment)) == 1 for segment in segments)
    lengths = {segment[0]: len(segment) for segment in segments if segment[0] >= 0}
    assert lengths == {i: len(sample.input_ids) for i, sample in enumerate(encoded)}


def test_packed_lays_samples_out_in_one_row_without_padding(packed, encoded):
    batch = packed(encoded)
    assert batch.input_ids.shape == (1, sum(len(sample.input_ids) for sample in encoded))
    assert (batch.sample_of_token >= 0).all()


def test_standard_gives_each_sample_a_row_as_long_as_the_longest(standard, encoded):
    batch = standard(encoded)
    longest = max(len(sample.input_ids) for sample in encoded)
    assert batch.input_ids.shape == (len(encoded), longest)
    for i, sample in enumerate(encoded):
        num_tokens = len(sample.input_ids)
        assert batch.sample_of_token[i].tolist() == [i] * num_tokens + [-1] * (longest - num_tokens)


def test_nothing_in_a_batch_points_at_padding(standard, encoded):
    batch = standard(encoded)
    padding = (batch.sample_of_token.flatten() < 0).nonzero()[:, 0]
    assert len(padding)
    used = [batch.image_positions, batch.supervised_positions, batch.memory.text[batch.memory.text_mask]]
    assert not torch.isin(torch.cat(used), padding).any()
    assert not batch.position_ids.flatten(1)[:, padding].any()


def test_supervised_positions_predict_exactly_the_answers(collator, encoded):
    batch = collator(encoded)
    for i, sample in enumerate(encoded):
        targets = sample.roles.nonzero()[:, 0].tolist()
        expected = [(t - 1, int(sample.input_ids[t]), int(sample.roles[t])) for t in targets]
        assert supervision(batch, i) == expected
    assert len(batch.labels) == sum(int((sample.roles > 0).sum()) for sample in encoded)


def test_the_first_token_of_a_sample_is_never_predicted(collator, encoded):
    all_supervised = [replace(sample, roles=torch.ones_like(sample.roles)) for sample in encoded]
    batch = collator(all_supervised)
    for i, sample in enumerate(all_supervised):
        assert [p for p, _, _ in supervision(batch, i)] == list(range(len(sample.input_ids) - 1))


def test_counts_are_those_of_the_roles_and_the_annotations(collator, encoded):
    def num_tokens(role):
        return sum(int((sample.roles == role).sum()) for sample in encoded)

    expected = Counts(num_tokens(Role.TEACHER), num_tokens(Role.STUDENT), 3 + 2 + 0 + 1, 4)
    assert collator(encoded).counts == expected
    assert collator(encoded[:1]).counts + collator(encoded[1:]).counts == expected


def test_the_memory_holds_the_students_image_tokens_only(collator, encoded):
    batch, start = collator(encoded), 0
    for i, sample in enumerate(encoded):
        first_of_student = start + int(sample.grid_thw[:-1].prod(dim=1).sum()) // 4
        start += len(sample.patches) // 4
        vision = batch.memory.vision[i][batch.memory.vision_mask[i]]
        assert vision.tolist() == list(range(first_of_student, start))


def test_the_memory_holds_the_text_before_the_answer_only(collator, encoded):
    batch = collator(encoded)
    for i, sample in enumerate(encoded):
        text = batch.memory.text[i][batch.memory.text_mask[i]]
        assert text.tolist() == positions_of(batch, i)[: sample.memory_end].tolist()
        answer = positions_of(batch, i)[sample.roles == Role.STUDENT]
        assert text.max() < answer.min()


def test_padding_of_the_memory_points_into_the_batch(collator, encoded):
    memory = collator(encoded).memory
    assert 0 <= memory.text.min() <= memory.text.max() < collator(encoded).input_ids.numel()
    assert 0 <= memory.vision.min() <= memory.vision.max() < len(collator(encoded).image_positions)
    assert not memory.text_mask.all()
    assert not memory.vision_mask.all()


def test_padding_of_the_memory_repeats_all_entries_of_its_sample_equally_often(collator, encoded):
    memory = collator(encoded).memory
    for indices, mask in ((memory.vision, memory.vision_mask), (memory.text, memory.text_mask)):
        for row, row_mask in zip(indices, mask, strict=True):
            entries, counts = row.unique(return_counts=True)
            assert entries.tolist() == row[row_mask].tolist()
            assert counts.max() - counts.min() <= 1


def test_vision_centers_are_those_of_the_image_tokens_in_reading_order(collator, encoded):
    batch = collator(encoded)
    for i, sample in enumerate(encoded):
        _, height, width = (sample.grid_thw[-1] // torch.tensor([1, 2, 2])).tolist()
        expected = [((x + 0.5) / width, (y + 0.5) / height) for y in range(height) for x in range(width)]
        torch.testing.assert_close(
            batch.memory.vision_centers[i][batch.memory.vision_mask[i]], torch.tensor(expected), rtol=0, atol=1e-6
        )


def test_captions_are_padded_with_the_ignored_label(collator, encoded):
    batch = collator(encoded)
    captions = [caption for sample in encoded for caption in sample.captions]
    assert batch.caption_ids.shape == (6, max(map(len, captions)))
    for row, caption in zip(batch.caption_ids.tolist(), captions, strict=True):
        assert row == caption.tolist() + [-100] * (len(row) - len(caption))


def test_a_batch_without_objects_has_empty_targets_and_still_counts_its_sample(collator, encoded):
    batch = collator([encoded[2]])
    assert batch.boxes_cxcywh.shape == (0, 4)
    assert batch.caption_ids.shape == (0, 1)
    assert batch.sample_of_object.tolist() == []
    assert batch.objects_per_sample == (0,)
    assert batch.annotated.tolist() == [True]
    assert batch.counts == Counts(0, int((encoded[2].roles == Role.STUDENT).sum()), 0, 1)
    assert batch.counts.student_tokens > 0


def test_a_batch_of_unsupervised_samples_has_one_label_without_role_and_counts_nothing(collator, encoded):
    batch = collator([sample.unsupervised() for sample in encoded[:2]])
    assert (len(batch.supervised_positions), batch.label_roles.tolist()) == (1, [Role.NONE])
    assert batch.counts == Counts(0, 0, 0, 0)
    assert batch.annotated.tolist() == [False, False]
    assert batch.boxes_cxcywh.shape == (0, 4)


@pytest.fixture(scope="module")
def stock_tower(config):
    torch.manual_seed(0)
    shape = OmegaConf.to_container(config().model.shape, resolve=True)
    return Qwen2_5_VLForConditionalGeneration(configuration(None, "random", shape)).model.visual


@torch.no_grad()
def test_vision_indices_are_those_that_the_stock_tower_computes(packed, encoded, stock_tower):
    vision = packed(encoded).vision
    inputs = {}

    def record(name):
        return lambda module, args, kwargs: inputs.setdefault(name, (args, kwargs)) and None

    full, window = stock_tower.blocks[1], stock_tower.blocks[0]
    handles = [
        module.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, module in (("rotary", stock_tower.rotary_pos_emb), ("full", full), ("window", window))
    ]
    pixels = (vision.patches.float() / 255).unflatten(1, (3, 1, 196)).expand(-1, -1, 2, -1).flatten(1)
    features = stock_tower(pixels, grid_thw=vision.grid_thw).pooler_output
    for handle in handles:
        handle.remove()
    assert torch.equal(vision.position_ids, inputs["rotary"][0][1])
    for name, cu_seqlens, max_seqlen in (
        ("full", vision.cu_seqlens, vision.max_seqlen),
        ("window", vision.cu_window_seqlens, vision.max_window_seqlen),
    ):
        expected = inputs[name][1]["cu_seqlens"]
        assert torch.equal(cu_seqlens, expected)
        assert max_seqlen == expected.diff().max()
    indices = {f.name: getattr(vision, f.name) for f in fields(vision) if f.name not in ("patches", "grid_thw")}
    assert torch.equal(stock_tower(pixels, grid_thw=vision.grid_thw, **indices).pooler_output, features)
    wrong = indices | {"window_index": vision.window_index.flip(0)}
    assert not torch.allclose(stock_tower(pixels, grid_thw=vision.grid_thw, **wrong).pooler_output, features, atol=1e-3)


def test_moving_a_batch_keeps_everything(collator, encoded):
    batch = collator(encoded)
    assert_same(batch, batch.to("cpu"))
    assert_same(batch, batch._map(lambda tensor: tensor.flip(0)), change=lambda tensor: tensor.flip(0))


def test_every_tensor_of_a_batch_moves(collator, encoded):
    def tensors(movable):
        for value in (getattr(movable, field.name) for field in fields(movable)):
            yield from [value] if isinstance(value, Tensor) else tensors(value) if isinstance(value, Movable) else []

    moved = list(tensors(collator(encoded).to("meta")))
    assert len(moved) > 20  # including those of the vision inputs and of the memory index
    assert all(tensor.is_meta for tensor in moved)
