"""Noised true boxes: how far they move, and that nothing but their own number decides it."""

import pytest
import torch
from scipy.stats import ks_1samp, uniform

from bbu_train.head.denoising import noised, slots
from bbu_train.ops.boxes import cxcywh_to_xyxy
from bbu_train.runtime.seeds import generator

START = torch.from_numpy(generator("start").random((5, 4), dtype="float32"))
SAMPLES = torch.tensor([0, 0, 2, 2, 2])


@pytest.fixture
def true():
    """Boxes that stay within the picture however they move."""
    centers, sizes = torch.from_numpy(generator("true").random((2, 5, 2), dtype="float32"))
    return torch.cat([0.4 + 0.2 * centers, 0.05 + 0.1 * sizes], dim=-1)


def moves(true, num_groups):
    """Of each side, in halves of its length: of little noise and of much."""
    apart = cxcywh_to_xyxy(noised(true, START, num_groups)) - cxcywh_to_xyxy(true)[:, None, None]
    return apart / (true[:, None, None, 2:].repeat(1, 1, 1, 2) / 2)


def test_little_noise_moves_a_side_by_up_to_half_of_its_length(true):
    little = moves(true, 50)[:, :, 0].abs()
    assert 0.98 < little.max() < 1.001
    assert little.min() < 0.02


def test_much_noise_moves_a_side_by_half_to_all_of_its_length(true):
    """Until the box would be inside out, where its sides change places."""
    much = noised(true, START, 50)[:, :, 1]
    sides = cxcywh_to_xyxy(true)[:, None]
    low, high = cxcywh_to_xyxy(much).split(2, dim=-1)
    apart = [torch.stack([(side - end).abs() for end in sides.split(2, dim=-1)]) for side in (low, high)]
    half = true[:, None, 2:] / 2
    for either in apart:
        assert ((either >= 0.999 * half) & (either <= 2.001 * half)).any(dim=0).all()
    assert (much[..., 2:] >= 0).all()


def test_noise_goes_in_all_directions_alike(true):
    little = moves(true, 200)[:, :, 0]
    assert little.mean(dim=1).abs().max() < 0.05
    together = torch.corrcoef(little.flatten(0, 1).T) - torch.eye(4)
    assert together.abs().max() < 0.1


def test_no_two_noises_of_a_picture_are_the_same(true):
    all_moves = moves(true, 8)[:, :, 0].flatten(0, 1)
    assert (torch.cdist(all_moves, all_moves) + torch.eye(len(all_moves)) > 0.01).all()


def test_the_noise_of_an_object_is_bit_for_bit_the_same_in_any_company(true):
    expected, order = noised(true, START, 3), torch.tensor([3, 0, 4])
    assert torch.equal(noised(true[order], START[order], 3), expected[order])
    assert torch.equal(noised(true[2:3], START[2:3], 3), expected[2:3])
    assert torch.equal(noised(true, START, 5)[:, :3], expected)


def test_few_noises_of_many_objects_are_as_different_as_they_can_be():
    """Of the little noise of the first group, over objects: every side by itself, and none like another."""
    boxes = torch.tensor([0.5, 0.5, 0.1, 0.1]).repeat(5000, 1)
    start = torch.from_numpy(generator("many").random((5000, 4), dtype="float32"))
    sides = (cxcywh_to_xyxy(noised(boxes, start, 1))[:, 0, 0] - cxcywh_to_xyxy(boxes)) / 0.05
    assert ks_1samp(sides.numpy(), uniform(-1, 2).cdf).pvalue.min() > 1e-3
    assert (torch.corrcoef(sides.T) - torch.eye(4)).abs().max() < 0.06


def test_a_noised_box_stays_in_the_picture():
    rim = torch.tensor([[0.05, 0.95, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0], [0.3, 0.3, 0.0, 0.0]])
    corners = cxcywh_to_xyxy(noised(rim, START[:3], 20))
    assert corners.min() > -1e-6
    assert corners.max() < 1 + 1e-6


def test_what_is_laid_into_slots_comes_back():
    values = torch.from_numpy(generator("values").random((5, 3, 2, 4), dtype="float32"))
    rows = slots(SAMPLES, num_samples=3, most=3)
    laid = rows.lay(values)
    assert laid.shape == (3, 3, 6, 4)
    assert torch.equal(rows.lift(torch.stack([laid, -laid])), torch.stack([values, -values]))
    assert torch.equal(laid[2, 1], values[2:, 1].flatten(0, 1)), "a group of a sample has both boxes of its objects"


def test_only_slots_that_are_taken_are_read_and_in_an_empty_row_all():
    mask = slots(SAMPLES, num_samples=3, most=3).mask
    assert mask.sum(dim=1).tolist() == [4, 6, 6]
    assert mask[0].tolist() == [True] * 4 + [False] * 2


def test_without_any_object_there_are_slots_all_the_same():
    rows = slots(torch.zeros(0, dtype=torch.long), num_samples=2, most=0)
    assert rows.mask.tolist() == [[True, True]] * 2
    laid = rows.lay(torch.zeros(0, 3, 2, 4))
    assert laid.shape == (2, 3, 2, 4)
    assert rows.lift(laid[None]).shape == (1, 0, 3, 2, 4)
