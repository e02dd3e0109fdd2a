"""How much there is to compute: the same numbers wherever the samples lie, and none for what stands in."""

from dataclasses import astuple, fields

import pytest
import torch

from bbu_train.collator.sizes import sizes
from bbu_train.ops.flops import Sizes

NOTHING = Sizes(*[0] * len(fields(Sizes)))


def added(parts):
    return Sizes(*map(sum, zip(*map(astuple, parts), strict=True)))


@pytest.mark.parametrize("collator", ["packed", "standard"])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_the_sizes_of_a_step_are_the_same_in_every_layout(collate, encoded, collator, num_parts):
    batches = [collate(collator, encoded[i::num_parts]) for i in range(num_parts)]
    assert added(batch.sizes for batch in batches) == collate("packed", encoded).sizes


def test_what_stands_in_for_a_sample_needs_nothing(collate, encoded):
    stand_ins = [sample.unsupervised() for sample in encoded]
    assert collate("packed", stand_ins).sizes == NOTHING
    assert collate("packed", [encoded[0], stand_ins[1]]).sizes == collate("packed", encoded[:1]).sizes


def test_pairs_are_those_of_the_segments_that_the_model_is_given(collate, encoded):
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


def test_the_head_reads_the_memory_of_annotated_samples_and_writes_their_captions(collate, encoded):
    batch, said = collate("packed", encoded), collate("packed", encoded).sizes
    entries = batch.memory.vision_mask.sum(dim=1) + batch.memory.text_mask.sum(dim=1)
    words = (batch.caption_ids >= 0).sum(dim=1)
    assert (said.samples, said.memory) == (4, int(entries.sum()))
    assert (said.captions, said.caption_tokens) == (6, int(words.sum()))
    assert said.caption_squares == int(words.square().sum())
    assert said.caption_memory == int(words @ entries[batch.sample_of_object])
    assert said.object_memory == int(entries[batch.sample_of_object].sum())
    assert said.object_squares == sum(number**2 for number in batch.objects_per_sample)


def test_of_the_memory_the_image_tokens_of_students_are_counted_apart(collate, encoded):
    batch, said = collate("packed", encoded), collate("packed", encoded).sizes
    seen, words = batch.memory.vision_mask.sum(dim=1), (batch.caption_ids >= 0).sum(dim=1)
    assert said.memory_image == int(seen.sum())
    assert said.caption_memory_image == int(words @ seen[batch.sample_of_object])
    assert said.object_memory_image == int(seen[batch.sample_of_object].sum())


def test_sizes_are_plain_numbers_that_no_device_has_to_be_asked_for(encoded, preprocessing):
    assert all(type(value) is int for value in astuple(sizes(encoded, preprocessing.picture_format)))
    assert not any(isinstance(value, torch.Tensor) for value in astuple(NOTHING))
