"""The modulation of attention around a box, on small grids of image tokens."""

import pytest
import torch
from torch.distributions import Normal

from bbu_train.head.modulated_attention import GaussianModulation, memory_positions, modulation_bias
from bbu_train.runtime.seeds import generator

D_MODEL, NUM_HEADS = 16, 4


def random_boxes(*shape):
    return torch.from_numpy(0.2 + 0.4 * generator("anchors").random((*shape, 4), dtype="float32"))


@pytest.fixture
def modulation():
    torch.manual_seed(0)
    return GaussianModulation(D_MODEL, NUM_HEADS)


def bias_of(modulation, queries, boxes, index):
    """The bias of each pair of a query and a memory entry."""
    return modulation_bias(modulation(queries, boxes, index.vision_sizes), memory_positions(index).entries)


def test_the_bias_is_the_log_density_of_a_normal_around_a_point_of_the_box(modulation, index):
    torch.nn.init.normal_(modulation.projection.weight, std=0.3)
    queries = torch.from_numpy(generator("queries").standard_normal((2, 3, D_MODEL), dtype="float32"))
    boxes = random_boxes(2, 3)
    bias = bias_of(modulation, queries, boxes, index)
    parameters = modulation.projection(queries).view(2, 3, NUM_HEADS, 5)
    for sample, query, head, token in [(0, 0, 0, 0), (0, 2, 3, 5), (1, 1, 2, 3)]:
        (ox, oy, *log_stds, text), (cx, cy, w, h) = parameters[sample, query, head], boxes[sample, query]
        w, h = torch.maximum(torch.stack([w, h]), index.vision_sizes[sample])
        mean, std = torch.stack([cx + ox * w, cy + oy * h]), torch.stack(log_stds).exp() * torch.stack([w, h])
        normal = Normal(mean, std)
        expected = (normal.log_prob(index.vision_centers[sample, token]) - normal.log_prob(mean)).sum()
        torch.testing.assert_close(bias[sample, head, query, token], expected)
        torch.testing.assert_close(bias[sample, head, query, 6], text)


def test_only_padding_is_masked_out(modulation, index):
    bias = bias_of(modulation, torch.zeros(2, 3, D_MODEL), random_boxes(2, 3), index)
    mask = torch.cat([index.vision_mask, index.text_mask], dim=1)
    assert torch.equal(bias.isfinite(), mask[:, None, None].expand_as(bias))


def test_before_training_every_head_attends_to_the_box_and_hardly_to_text(modulation, index):
    box = torch.tensor([1 / 6, 1 / 4, 1 / 3, 1 / 2])  # that of the first token
    bias = bias_of(modulation, torch.zeros(2, 1, D_MODEL), box.expand(2, 1, 4), index)
    weights = bias[0, :, 0].softmax(dim=-1)
    assert (weights.argmax(dim=-1) == 0).all()
    assert (weights[:, 6:] < 0.03).all()


def test_a_box_smaller_than_a_token_is_treated_as_one_token_large(modulation, index):
    """Otherwise a box between two centres would attend to no token."""
    point = torch.tensor([1 / 3, 1 / 2, 1e-4, 1e-4]).expand(2, 1, 4)
    bias = bias_of(modulation, torch.zeros(2, 1, D_MODEL), point, index)
    assert (bias[0, :, 0, :6].amax(dim=-1) > -5).all()
