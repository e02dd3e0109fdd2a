"""Sizes: the same in every layout, and zero for fillers."""

from dataclasses import astuple, fields

import pytest

from bbu_train.collator.sizes import sizes
from bbu_train.ops.flops import Sizes

NOTHING = Sizes(*[0] * len(fields(Sizes)))


def add(parts):
    return Sizes(*map(sum, zip(*map(astuple, parts), strict=True)))


@pytest.mark.parametrize("collator", ["packed", "standard"])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_the_sizes_of_a_step_are_the_same_in_every_layout(collate, encoded, collator, num_parts):
    batches = [collate(collator, encoded[i::num_parts]) for i in range(num_parts)]
    assert add(batch.sizes for batch in batches) == collate("packed", encoded).sizes


def test_unsupervised_fillers_count_nothing(collate, encoded):
    fillers = [sample.unsupervised() for sample in encoded]
    assert collate("packed", fillers).sizes == NOTHING
    assert collate("packed", [encoded[0], fillers[1]]).sizes == collate("packed", encoded[:1]).sizes


def test_squares_are_those_of_the_segments_of_the_batch(collate, encoded):
    batch = collate("packed", encoded)
    for squares, bounds in (
        (batch.sizes.token_squares, batch.cu_seqlens),
        (batch.sizes.picture_squares, batch.vision.cu_seqlens),
        (batch.sizes.window_squares, batch.vision.cu_window_seqlens),
    ):
        assert squares == int(bounds.diff().square().sum())


def test_tokens_patches_and_labels_are_counted_once_each(collate, encoded):
    batch = collate("packed", encoded)
    assert batch.sizes.tokens == batch.input_ids.numel()
    assert batch.sizes.supervised == len(batch.labels)
    assert batch.sizes.patches == len(batch.vision.patches)
    assert batch.sizes.merged == len(batch.image_positions)


def test_memories_captions_and_objects_are_those_of_the_batch(collate, encoded):
    batch = collate("packed", encoded)
    entries = batch.memory.vision_mask.sum(dim=1) + batch.memory.text_mask.sum(dim=1)
    caption_lengths = (batch.caption_ids >= 0).sum(dim=1)
    assert (batch.sizes.samples, batch.sizes.memory) == (4, int(entries.sum()))
    assert (batch.sizes.captions, batch.sizes.caption_tokens) == (6, int(caption_lengths.sum()))
    assert batch.sizes.caption_squares == int(caption_lengths.square().sum())
    assert batch.sizes.caption_memory == int(caption_lengths @ entries[batch.sample_of_object])
    assert batch.sizes.object_memory == int(entries[batch.sample_of_object].sum())
    assert batch.sizes.object_squares == sum(number**2 for number in batch.objects_per_sample)


def test_fields_that_end_in_image_count_the_students_image_tokens(collate, encoded):
    batch = collate("packed", encoded)
    image_tokens, caption_lengths = batch.memory.vision_mask.sum(dim=1), (batch.caption_ids >= 0).sum(dim=1)
    assert batch.sizes.memory_image == int(image_tokens.sum())
    assert batch.sizes.caption_memory_image == int(caption_lengths @ image_tokens[batch.sample_of_object])
    assert batch.sizes.object_memory_image == int(image_tokens[batch.sample_of_object].sum())


def test_sizes_are_plain_integers_that_need_no_copy_from_a_device(encoded, preprocessing):
    assert all(type(value) is int for value in astuple(sizes(encoded, preprocessing.picture_format)))
