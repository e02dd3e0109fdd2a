"""Where a query looks from its box, on small grids of image tokens."""

import pytest
import torch
from torch.distributions import Normal

from bbu_train.head.modulated_attention import Gaze, bias, places
from bbu_train.runtime.seeds import generator

D_MODEL, NUM_HEADS = 16, 4


def random_boxes(*shape):
    return torch.from_numpy(0.2 + 0.4 * generator("anchors").random((*shape, 4), dtype="float32"))


@pytest.fixture
def gaze():
    torch.manual_seed(0)
    return Gaze(D_MODEL, NUM_HEADS)


def added(gaze, queries, boxes, index):
    """Of each pair of a query and a memory entry."""
    return bias(gaze(queries, boxes, index.vision_sizes), places(index).entries)


def test_a_gaze_is_a_normal_density_around_a_place_of_the_box(gaze, index):
    torch.nn.init.normal_(gaze.say.weight, std=0.3)
    queries = torch.from_numpy(generator("queries").standard_normal((2, 3, D_MODEL), dtype="float32"))
    boxes = random_boxes(2, 3)
    found = added(gaze, queries, boxes, index)
    said = gaze.say(queries).view(2, 3, NUM_HEADS, 5)
    for sample, query, head, token in [(0, 0, 0, 0), (0, 2, 3, 5), (1, 1, 2, 3)]:
        (ox, oy, *scales, text), (cx, cy, w, h) = said[sample, query, head], boxes[sample, query]
        w, h = torch.maximum(torch.stack([w, h]), index.vision_sizes[sample])
        middle, spread = torch.stack([cx + ox * w, cy + oy * h]), torch.stack(scales).exp() * torch.stack([w, h])
        density = Normal(middle, spread)
        expected = (density.log_prob(index.vision_centers[sample, token]) - density.log_prob(middle)).sum()
        torch.testing.assert_close(found[sample, head, query, token], expected)
        torch.testing.assert_close(found[sample, head, query, 6], text)


def test_a_gaze_does_not_see_padding_and_sees_all_else(gaze, index):
    found = added(gaze, torch.zeros(2, 3, D_MODEL), random_boxes(2, 3), index)
    mask = torch.cat([index.vision_mask, index.text_mask], dim=1)
    assert torch.equal(found.isfinite(), mask[:, None, None].expand_as(found))


def test_untaught_every_head_looks_into_the_box_and_hardly_at_text(gaze, index):
    box = torch.tensor([1 / 6, 1 / 4, 1 / 3, 1 / 2])  # that of the first token
    looks = added(gaze, torch.zeros(2, 1, D_MODEL), box.expand(2, 1, 4), index)[0, :, 0].softmax(dim=-1)
    assert (looks.argmax(dim=-1) == 0).all()
    assert (looks[:, 6:] < 0.03).all()


def test_a_box_smaller_than_a_token_is_looked_at_as_one(gaze, index):
    """Or between two centres there would be nothing to see."""
    point = torch.tensor([1 / 3, 1 / 2, 1e-4, 1e-4]).expand(2, 1, 4)
    assert (added(gaze, torch.zeros(2, 1, D_MODEL), point, index)[0, :, 0, :6].amax(dim=-1) > -5).all()
