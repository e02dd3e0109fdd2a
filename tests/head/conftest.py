"""Small grids of image tokens."""

import pytest
import torch

from bbu_train.types.batch import MemoryIndex


@pytest.fixture(scope="session")
def grid():
    """A function from numbers of rows and columns to the centres of image tokens, row by row."""

    def make(height, width):
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        return torch.stack([x, y], dim=-1).view(-1, 2)

    return make


@pytest.fixture
def index(grid):
    """Two samples: pictures of 3 x 2 and 1 x 4 image tokens (width x height), with two and one tokens of text."""
    centers = torch.zeros(2, 6, 2)
    centers[0], centers[1, :4] = grid(2, 3), grid(4, 1)
    return MemoryIndex(
        vision=torch.tensor([[5, 6, 7, 8, 9, 10], [20, 21, 22, 23, 0, 0]]),
        vision_mask=torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        vision_centers=centers,
        text=torch.tensor([[0, 1], [7, 0]]),
        text_mask=torch.tensor([[True, True], [True, False]]),
        text_positions=torch.tensor([[0, 1], [0, 0]]),
    )
