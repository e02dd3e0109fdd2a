"""Teachers' pictures apart: what the tower reads at once, what by itself, and where the image tokens belong."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from bbu_train.collator.packed import Packed
from bbu_train.collator.standard import Standard


@pytest.fixture
def form(preprocessing):
    return replace(preprocessing.picture_format, teachers_apart=True)


@pytest.fixture(params=[Packed, Standard])
def both(request, preprocessing, form):
    """The batch of each collator with all pictures together, and with teachers apart."""
    collators = [request.param(its, 8192, "error") for its in (preprocessing.picture_format, form)]
    return lambda some: [collator(some) for collator in collators]


def pictures(sample):
    return sample.patches.split(sample.grid_thw.prod(dim=1).tolist())


def test_the_tower_reads_the_students_at_once_and_each_teacher_by_itself(both, encoded):
    _, apart = both(encoded)
    assert torch.equal(apart.vision.patches, torch.cat([pictures(sample)[-1] for sample in encoded]))
    teachers = [picture for sample in encoded for picture in pictures(sample)[:-1]]
    assert len(teachers) == 4
    for laid, patches in zip(apart.teachers, teachers, strict=True):
        assert torch.equal(laid.vision.patches, patches)
        assert laid.vision.max_seqlen == len(patches) == int(laid.vision.grid_thw.prod())


def test_a_picture_by_itself_has_the_indices_that_it_has_as_a_student_alone(both, encoded):
    _, apart = both(encoded)
    door, alone = apart.teachers[1].vision, both([encoded[3].unsupervised()])[1].vision  # the student of d
    for field in fields(door):
        ours, its = getattr(door, field.name), getattr(alone, field.name)
        assert torch.equal(ours, its) if isinstance(ours, Tensor) else ours == its


def test_image_tokens_are_numbered_students_first_and_lie_where_they_lay(both, encoded):
    together, apart = both(encoded)
    rows = [together.vision.patches, torch.cat([apart.vision.patches, *(t.vision.patches for t in apart.teachers)])]
    at_place = [torch.zeros(together.input_ids.numel(), 4 * 588, dtype=torch.uint8) for _ in rows]
    for batch, patches, place in zip((together, apart), rows, at_place, strict=True):
        place[batch.image_positions] = patches.reshape(-1, 4 * 588)
    assert torch.equal(*at_place)


def test_the_heads_memory_is_the_same_students_picture(both, encoded):
    for batch in both(encoded):
        merged = batch.vision.patches.unflatten(0, (-1, 4))
        for i, sample in enumerate(encoded):
            seen = merged[batch.memory.vision[i][batch.memory.vision_mask[i]]]
            assert torch.equal(seen.flatten(0, 1), pictures(sample)[-1])


def test_all_else_of_the_batch_is_the_same(both, encoded):
    together, apart = both(encoded)
    for field in fields(together):
        ours, its = getattr(together, field.name), getattr(apart, field.name)
        if field.name not in ("vision", "teachers", "image_positions", "memory", "sizes"):
            assert torch.equal(ours, its) if isinstance(ours, Tensor) else ours == its
    assert together.teachers == ()


def test_the_tower_is_to_read_the_students_only_and_the_merger_all(both, encoded):
    together, apart = both(encoded)
    vision = apart.vision
    assert apart.sizes == replace(
        together.sizes,
        patches=len(vision.patches),
        picture_squares=int(vision.cu_seqlens.diff().square().sum()),
        window_squares=int(vision.cu_window_seqlens.diff().square().sum()),
    )
    assert apart.sizes.merged == len(apart.image_positions) > len(vision.patches) // 4


def test_the_key_is_that_of_the_pixels_on_their_grid(both, encoded):
    def keys(*some):
        return [picture.key for picture in both(some)[1].teachers]

    rack, door = keys(encoded[0])
    assert rack != door
    assert keys(encoded[1]) == [door]  # as the teacher of another sample
    assert keys(replace(encoded[1], patches=255 - encoded[1].patches)) != [door]
    grey = replace(encoded[1], patches=torch.full_like(encoded[1].patches, 128))
    turned = replace(grey, grid_thw=grey.grid_thw[:, [0, 2, 1]])
    assert keys(grey) != keys(turned)


def test_teachers_stay_on_the_host_when_the_batch_moves(both, encoded):
    moved = both(encoded)[1].to("meta")
    assert moved.vision.patches.is_meta
    assert not any(picture.vision.patches.is_meta for picture in moved.teachers)


def test_conversations_without_teachers_are_laid_the_same_either_way(both, encoded):
    together, apart = both([encoded[2]])
    assert apart.teachers == ()
    assert torch.equal(together.vision.patches, apart.vision.patches)
    assert torch.equal(together.image_positions, apart.image_positions)
