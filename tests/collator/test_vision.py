"""Teachers' pictures kept apart: the tower's inputs, their keys, and the positions of the image tokens."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from bbu_train.collator.packed import PackedCollator
from bbu_train.collator.standard import PaddedCollator


@pytest.fixture
def apart_format(preprocessing):
    return replace(preprocessing.picture_format, teachers_apart=True)


@pytest.fixture(params=[PackedCollator, PaddedCollator])
def collate_both(request, preprocessing, apart_format):
    """A function from samples to two batches of one collator: all pictures together, and teachers' pictures apart."""
    formats = preprocessing.picture_format, apart_format
    collators = [request.param(picture_format, 8192, "error") for picture_format in formats]
    return lambda samples: [collator(samples) for collator in collators]


def patches_of_pictures(sample):
    return sample.patches.split(sample.grid_thw.prod(dim=1).tolist())


def test_students_pictures_are_together_and_each_teachers_picture_is_apart(collate_both, encoded):
    _, apart = collate_both(encoded)
    assert torch.equal(apart.vision.patches, torch.cat([patches_of_pictures(sample)[-1] for sample in encoded]))
    teachers = [patches for sample in encoded for patches in patches_of_pictures(sample)[:-1]]
    assert len(teachers) == 4
    for teacher, patches in zip(apart.teachers, teachers, strict=True):
        assert torch.equal(teacher.vision.patches, patches)
        assert teacher.vision.max_seqlen == len(patches) == int(teacher.vision.grid_thw.prod())


def test_a_picture_apart_has_the_same_vision_inputs_as_a_student_alone(collate_both, encoded):
    _, apart = collate_both(encoded)
    teacher, student = apart.teachers[1].vision, collate_both([encoded[3].unsupervised()])[1].vision  # both are "door"
    assert_fields_equal(teacher, student, [field.name for field in fields(teacher)])


def assert_fields_equal(a, b, names):
    for name in names:
        x, y = getattr(a, name), getattr(b, name)
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y


def test_image_tokens_are_numbered_students_first_and_keep_their_positions(collate_both, encoded):
    together, apart = collate_both(encoded)
    all_apart = torch.cat([apart.vision.patches, *(teacher.vision.patches for teacher in apart.teachers)])
    by_position = []
    for batch, patches in ((together, together.vision.patches), (apart, all_apart)):
        tokens = torch.zeros(batch.input_ids.numel(), 4 * 588, dtype=torch.uint8)
        tokens[batch.image_positions] = patches.reshape(-1, 4 * 588)
        by_position.append(tokens)
    assert torch.equal(*by_position)


def test_the_memory_is_the_students_picture_either_way(collate_both, encoded):
    for batch in collate_both(encoded):
        merged = batch.vision.patches.unflatten(0, (-1, 4))
        for i, sample in enumerate(encoded):
            memory = merged[batch.memory.vision[i][batch.memory.vision_mask[i]]]
            assert torch.equal(memory.flatten(0, 1), patches_of_pictures(sample)[-1])


def test_all_other_fields_of_the_batch_are_the_same(collate_both, encoded):
    together, apart = collate_both(encoded)
    names = {field.name for field in fields(together)}
    assert_fields_equal(together, apart, names - {"vision", "teachers", "image_positions", "memory", "sizes"})
    assert together.teachers == ()


def test_sizes_count_students_patches_only_but_all_image_tokens(collate_both, encoded):
    together, apart = collate_both(encoded)
    vision = apart.vision
    assert apart.sizes == replace(
        together.sizes,
        patches=len(vision.patches),
        picture_squares=int(vision.cu_seqlens.diff().square().sum()),
        window_squares=int(vision.cu_window_seqlens.diff().square().sum()),
    )
    assert apart.sizes.merged == len(apart.image_positions) > len(vision.patches) // 4


def test_a_key_depends_on_pixels_and_grid_alone(collate_both, encoded):
    def keys(*samples):
        return [picture.key for picture in collate_both(samples)[1].teachers]

    rack, door = keys(encoded[0])
    assert rack != door
    assert keys(encoded[1]) == [door]  # the same picture, as the teacher of another sample
    assert keys(replace(encoded[1], patches=255 - encoded[1].patches)) != [door]
    grey = replace(encoded[1], patches=torch.full_like(encoded[1].patches, 128))
    transposed = replace(grey, grid_thw=grey.grid_thw[:, [0, 2, 1]])
    assert keys(grey) != keys(transposed)


def test_teachers_stay_on_the_host_when_the_batch_moves(collate_both, encoded):
    moved = collate_both(encoded)[1].to("meta")
    assert moved.vision.patches.is_meta
    assert not any(picture.vision.patches.is_meta for picture in moved.teachers)


def test_conversations_without_teachers_are_laid_out_the_same_either_way(collate_both, encoded):
    together, apart = collate_both([encoded[2]])
    assert apart.teachers == ()
    assert torch.equal(together.vision.patches, apart.vision.patches)
    assert torch.equal(together.image_positions, apart.image_positions)
