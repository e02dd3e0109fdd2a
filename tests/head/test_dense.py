"""The assignment of image tokens to objects, against a plain loop over tokens and objects."""

import pytest
import torch

from bbu_train.head.dense import CENTER_FRACTION, assign_tokens
from bbu_train.runtime.seeds import generator

SIDE = 6


@pytest.fixture
def centers(grid):
    """One picture of 6 x 6 image tokens."""
    return grid(SIDE, SIDE)[None]


def no_padding(centers):
    return torch.ones(centers.shape[:2], dtype=torch.bool)


def assign_by_loop(centers, mask, true, sample_of_object):
    """For each token the smallest object that claims it; objects to which it is the nearest token come first."""
    assigned = torch.full(mask.shape, -1)
    for sample in range(len(mask)):
        objects = (sample_of_object == sample).nonzero()[:, 0].tolist()
        tokens = mask[sample].nonzero()[:, 0].tolist()
        distances = {i: {t: ((centers[sample, t] - true[i, :2]) ** 2).sum().item() for t in tokens} for i in objects}
        for token in tokens:
            claims = []
            x, y = centers[sample, token].tolist()
            for i in objects:
                cx, cy, width, height = true[i].tolist()
                if distances[i][token] == min(distances[i].values()):
                    claims.append((0, width * height, i))
                elif abs(x - cx) < CENTER_FRACTION / 2 * width and abs(y - cy) < CENTER_FRACTION / 2 * height:
                    claims.append((1, width * height, i))
            assigned[sample, token] = min(claims)[2] if claims else -1
    return assigned


def test_a_token_gets_the_smallest_object_in_whose_central_part_it_lies(centers):
    centers = torch.cat([centers, centers])
    mask = no_padding(centers)
    mask[1, 20:] = False
    samples = torch.tensor([0] * 5 + [1] * 4)
    for draw in range(5):
        true = torch.from_numpy(generator("dense", draw).random((9, 4), dtype="float32"))
        true *= torch.tensor([1, 1, 0.6, 0.6])
        assigned = assign_tokens(centers, mask, true, samples)
        assert torch.equal(assigned, assign_by_loop(centers, mask, true, samples))
        assert (assigned[~mask] == -1).all()


def test_an_object_between_tokens_gets_the_nearest_although_it_lies_inside_a_large_object(centers):
    true = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.1, 0.26, 0.01, 0.01]])
    assigned = assign_tokens(centers, no_padding(centers), true, torch.tensor([0, 0]))[0]
    assert (assigned == 1).nonzero()[:, 0].tolist() == [SIDE]  # the first token of the second row
    assert (assigned == 0).nonzero()[:, 0].tolist() == [14, 15, 20, 21]  # the four in the middle of the picture


def test_without_objects_every_token_gets_none(centers):
    no_boxes, no_samples = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert (assign_tokens(centers, no_padding(centers), no_boxes, no_samples) == -1).all()
