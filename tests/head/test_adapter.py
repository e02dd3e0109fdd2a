"""What the head's decoder reads: adapted features, gathered by sample, and where each of them is."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm

from bbu_train.head.adapter import Adapter, gather, places
from bbu_train.runtime.seeds import generator
from bbu_train.types.batch import MemoryIndex


@pytest.fixture
def index():
    """Two samples: the first has two image tokens and three of text, the second one of each."""
    return MemoryIndex(
        vision=torch.tensor([[1, 2], [4, 0]]),
        vision_mask=torch.tensor([[True, True], [True, False]]),
        vision_centers=torch.tensor([[[0.25, 0.5], [0.75, 0.5]], [[0.5, 0.5], [0.0, 0.0]]]),
        text=torch.tensor([[0, 1, 2], [6, 0, 0]]),
        text_mask=torch.tensor([[True, True, True], [True, False, False]]),
        text_positions=torch.tensor([[0, 1, 2], [0, 0, 0]]),
    )


def test_an_adapter_starts_as_norm_and_projection():
    torch.manual_seed(0)
    adapter = Adapter(width=8, ratio=2, d_model=4)
    features = torch.from_numpy(generator("features").standard_normal((3, 8), dtype="float32"))
    expected = layer_norm(features, (8,)) @ adapter.project.weight.T + adapter.project.bias
    torch.testing.assert_close(adapter(features), expected)


def test_every_part_of_an_adapter_but_the_one_that_zero_hides_learns_from_the_first_step():
    torch.manual_seed(0)
    adapter = Adapter(width=8, ratio=2, d_model=4)
    features = torch.from_numpy(generator("features").standard_normal((3, 8), dtype="float32"))
    adapter(features).square().sum().backward()
    still = {name for name, parameter in adapter.named_parameters() if not parameter.grad.norm() > 0}
    assert still == {"down.weight", "down.bias"}


def test_a_memory_is_its_samples_image_tokens_before_its_text(index):
    vision, text = torch.arange(5.0)[:, None] + 100, torch.arange(7.0)[:, None]
    memory, _, mask = gather(vision, text, index)
    assert [row[real].flatten().tolist() for row, real in zip(memory, mask, strict=True)] == [
        [101, 102, 0, 1, 2],
        [104, 6],
    ]


def test_image_tokens_know_their_place_in_the_picture_and_text_its_place_in_the_sample(index):
    where = places(index, 8)
    x, y = 2 * math.pi * 0.75, 2 * math.pi * 0.5
    expected = [f(angle) for a in (y, x) for f in (math.sin, math.cos) for angle in (a, a / 100)]
    assert where[0, 1].tolist() == pytest.approx(expected, abs=1e-5)
    angles = [2 / 10**power for power in range(4)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert where[0, 4].tolist() == pytest.approx(expected, abs=1e-5)
