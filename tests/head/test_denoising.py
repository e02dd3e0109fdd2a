"""Noised true boxes: how far they move, and that only their object's own noise decides where."""

import pytest
import torch
from scipy.stats import ks_1samp, uniform

from bbu_train.head.denoising import add_box_noise, build_slots
from bbu_train.ops.boxes import cxcywh_to_xyxy
from bbu_train.runtime.seeds import generator

NOISE = torch.from_numpy(generator("start").random((5, 4), dtype="float32"))
SAMPLES = torch.tensor([0, 0, 2, 2, 2])


@pytest.fixture
def true():
    """Boxes that stay inside the picture however they move."""
    centers, sizes = torch.from_numpy(generator("true").random((2, 5, 2), dtype="float32"))
    return torch.cat([0.4 + 0.2 * centers, 0.05 + 0.1 * sizes], dim=-1)


def moves(true, num_groups):
    """The move of each side, in halves of the box's width or height; small noise, then large."""
    differences = cxcywh_to_xyxy(add_box_noise(true, NOISE, num_groups)) - cxcywh_to_xyxy(true)[:, None, None]
    return differences / (true[:, None, None, 2:].repeat(1, 1, 1, 2) / 2)


def test_small_noise_moves_a_side_by_up_to_half_of_its_length(true):
    small = moves(true, 50)[:, :, 0].abs()
    assert 0.98 < small.max() < 1.001
    assert small.min() < 0.02


def test_large_noise_moves_a_side_by_half_to_all_of_its_length(true):
    """Two sides that pass each other change places, so a new side may come from either old one."""
    large = add_box_noise(true, NOISE, 50)[:, :, 1]
    old_sides = cxcywh_to_xyxy(true)[:, None].split(2, dim=-1)
    half = true[:, None, 2:] / 2
    for side in cxcywh_to_xyxy(large).split(2, dim=-1):
        distances = torch.stack([(side - old_side).abs() for old_side in old_sides])
        assert ((distances >= 0.999 * half) & (distances <= 2.001 * half)).any(dim=0).all()
    assert (large[..., 2:] >= 0).all()


def test_noise_has_no_preferred_direction(true):
    small = moves(true, 200)[:, :, 0]
    assert small.mean(dim=1).abs().max() < 0.05
    correlations = torch.corrcoef(small.flatten(0, 1).T) - torch.eye(4)
    assert correlations.abs().max() < 0.1


def test_no_two_noises_of_a_picture_are_the_same(true):
    small = moves(true, 8)[:, :, 0].flatten(0, 1)
    assert (torch.cdist(small, small) + torch.eye(len(small)) > 0.01).all()


def test_the_noise_of_an_object_does_not_depend_on_other_objects_or_groups(true):
    expected, order = add_box_noise(true, NOISE, 3), torch.tensor([3, 0, 4])
    assert torch.equal(add_box_noise(true[order], NOISE[order], 3), expected[order])
    assert torch.equal(add_box_noise(true[2:3], NOISE[2:3], 3), expected[2:3])
    assert torch.equal(add_box_noise(true, NOISE, 5)[:, :3], expected)


def test_the_first_noise_of_many_objects_is_uniform_and_independent_between_sides():
    """For the small noise of the first group."""
    boxes = torch.tensor([0.5, 0.5, 0.1, 0.1]).repeat(5000, 1)
    noise = torch.from_numpy(generator("many").random((5000, 4), dtype="float32"))
    sides = (cxcywh_to_xyxy(add_box_noise(boxes, noise, 1))[:, 0, 0] - cxcywh_to_xyxy(boxes)) / 0.05
    assert ks_1samp(sides.numpy(), uniform(-1, 2).cdf).pvalue.min() > 1e-3
    assert (torch.corrcoef(sides.T) - torch.eye(4)).abs().max() < 0.06


def test_a_noised_box_stays_in_the_picture():
    at_the_edge = torch.tensor([[0.05, 0.95, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0], [0.3, 0.3, 0.0, 0.0]])
    corners = cxcywh_to_xyxy(add_box_noise(at_the_edge, NOISE[:3], 20))
    assert corners.min() > -1e-6
    assert corners.max() < 1 + 1e-6


def test_unpad_undoes_pad():
    values = torch.from_numpy(generator("values").random((5, 3, 2, 4), dtype="float32"))
    slots = build_slots(SAMPLES, num_samples=3, max_objects=3)
    rows = slots.pad(values)
    assert rows.shape == (3, 3, 6, 4)
    assert torch.equal(slots.unpad(torch.stack([rows, -rows])), torch.stack([values, -values]))
    assert torch.equal(rows[2, 1], values[2:, 1].flatten(0, 1)), "a group of a sample has both boxes of its objects"


def test_the_mask_has_only_slots_of_objects_and_in_a_row_without_objects_all():
    mask = build_slots(SAMPLES, num_samples=3, max_objects=3).mask
    assert mask.sum(dim=1).tolist() == [4, 6, 6]
    assert mask[0].tolist() == [True] * 4 + [False] * 2


def test_a_batch_without_objects_has_slots_too():
    slots = build_slots(torch.zeros(0, dtype=torch.long), num_samples=2, max_objects=0)
    assert slots.mask.tolist() == [[True, True]] * 2
    rows = slots.pad(torch.zeros(0, 3, 2, 4))
    assert rows.shape == (2, 3, 2, 4)
    assert slots.unpad(rows[None]).shape == (1, 0, 3, 2, 4)
