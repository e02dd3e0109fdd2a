"""The memory of the decoders: adapted features, gathered by sample, and their positions."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm

from bbu_train.head.adapter import Adapter
from bbu_train.head.memory import gather_memory, memory_pos_embed
from bbu_train.runtime.seeds import generator
from bbu_train.types.batch import MemoryIndex


@pytest.fixture
def index():
    """Two samples: the first has two image tokens and three tokens of text, the second one of each."""
    return MemoryIndex(
        vision=torch.tensor([[1, 2], [4, 0]]),
        vision_mask=torch.tensor([[True, True], [True, False]]),
        vision_centers=torch.tensor([[[0.25, 0.5], [0.75, 0.5]], [[0.5, 0.5], [0.0, 0.0]]]),
        text=torch.tensor([[0, 1, 2], [6, 0, 0]]),
        text_mask=torch.tensor([[True, True, True], [True, False, False]]),
        text_positions=torch.tensor([[0, 1, 2], [0, 0, 0]]),
    )


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    return Adapter(width=8, ratio=2, d_model=4)


@pytest.fixture
def features():
    return torch.from_numpy(generator("features").standard_normal((3, 8), dtype="float32"))


def test_an_adapter_starts_as_norm_and_projection(adapter, features):
    expected = layer_norm(features, (8,)) @ adapter.project.weight.T + adapter.project.bias
    torch.testing.assert_close(adapter(features), expected)


def test_all_of_an_adapter_but_the_layer_before_the_zeros_learns_from_the_first_step(adapter, features):
    adapter(features).square().sum().backward()
    without_gradient = {name for name, parameter in adapter.named_parameters() if not parameter.grad.norm() > 0}
    assert without_gradient == {"down.weight", "down.bias"}


def test_a_memory_is_its_samples_image_tokens_before_its_text(index):
    vision, text = torch.arange(5.0)[:, None] + 100, torch.arange(7.0)[:, None]
    states, _, mask = gather_memory(vision, text, index)
    assert [row[is_real].flatten().tolist() for row, is_real in zip(states, mask, strict=True)] == [
        [101, 102, 0, 1, 2],
        [104, 6],
    ]


def test_image_tokens_are_encoded_by_their_centre_and_text_by_its_index_in_the_sample(index):
    pos_embed = memory_pos_embed(index, 8)
    x, y = 2 * math.pi * 0.75, 2 * math.pi * 0.5
    expected = [f(angle) for a in (y, x) for f in (math.sin, math.cos) for angle in (a, a / 100)]
    assert pos_embed[0, 1].tolist() == pytest.approx(expected, abs=1e-5)
    angles = [2 / 10**power for power in range(4)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert pos_embed[0, 4].tolist() == pytest.approx(expected, abs=1e-5)
