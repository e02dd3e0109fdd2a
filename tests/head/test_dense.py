"""Which object each image token answers for, token by token and object by object."""

import torch

from bbu_train.head.dense import CENTRAL, object_of_token
from bbu_train.runtime.seeds import generator

SIDE = 6


def grid(side=SIDE):
    steps = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2)


def real(centers):
    return torch.ones(centers.shape[:2], dtype=torch.bool)


def one_by_one(centers, mask, true, sample_of_object):
    """The same in words: for each token, the smallest of those that want it, nearest tokens first."""
    owners = torch.full(mask.shape, -1)
    for sample in range(len(mask)):
        its_objects = (sample_of_object == sample).nonzero()[:, 0].tolist()
        its_tokens = mask[sample].nonzero()[:, 0].tolist()
        for token in its_tokens:
            wants = []
            for number in its_objects:
                cx, cy, width, height = true[number].tolist()
                x, y = centers[sample, token].tolist()
                apart = {t: ((centers[sample, t] - true[number, :2]) ** 2).sum().item() for t in its_tokens}
                if apart[token] == min(apart.values()):
                    wants.append((0, width * height, number))
                elif abs(x - cx) < CENTRAL / 2 * width and abs(y - cy) < CENTRAL / 2 * height:
                    wants.append((1, width * height, number))
            owners[sample, token] = min(wants)[2] if wants else -1
    return owners


def test_a_token_answers_for_the_smallest_object_in_whose_middle_it_lies():
    for draw in range(5):
        random = generator("dense", draw)
        centers = torch.cat([grid(), grid()])
        mask = real(centers)
        mask[1, 20:] = False
        true = torch.from_numpy(random.random((9, 4), dtype="float32")) * torch.tensor([1, 1, 0.6, 0.6])
        samples = torch.tensor([0] * 5 + [1] * 4)
        owners = object_of_token(centers, mask, true, samples)
        assert torch.equal(owners, one_by_one(centers, mask, true, samples))
        assert (owners[~mask] == -1).all()


def test_an_object_between_tokens_has_the_nearest_although_a_large_one_lies_around_it():
    centers = grid()
    true = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.1, 0.26, 0.01, 0.01]])
    owners = object_of_token(centers, real(centers), true, torch.tensor([0, 0]))[0]
    assert (owners == 1).nonzero()[:, 0].tolist() == [SIDE]  # the first token of the second row
    assert (owners == 0).nonzero()[:, 0].tolist() == [14, 15, 20, 21]  # the four in the middle of the picture


def test_without_objects_no_token_answers_for_one():
    centers = grid()
    assert (object_of_token(centers, real(centers), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)) == -1).all()
