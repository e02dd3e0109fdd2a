"""Where queries begin and look, on small grids of image tokens."""

import pytest
import torch
from torch.distributions import Normal

from bbu_train.head import anchors
from bbu_train.head.anchors import Gaze, best, finer, nearest, of_tokens
from bbu_train.seeds import generator
from bbu_train.types import MemoryIndex

D_MODEL, NUM_HEADS = 16, 4


def grid(height, width):
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


@pytest.fixture
def index():
    """Two samples: pictures of 3 x 2 and of 1 x 4 image tokens (wide, high), and two and one tokens of text."""
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


def random_boxes(*shape):
    return torch.from_numpy(0.2 + 0.4 * generator("anchors").random((*shape, 4), dtype="float32"))


def test_the_parts_of_image_tokens_are_the_tokens_of_a_finer_grid(index):
    parts = finer(index, 2)
    for sample, (height, width) in enumerate([(4, 6), (8, 2)]):
        mine, expected = parts.vision_centers[sample][parts.vision_mask[sample]], grid(height, width)
        torch.testing.assert_close(mine[nearest_rows(expected, mine)], expected)
        torch.testing.assert_close(parts.vision_sizes[sample], torch.tensor([1 / width, 1 / height]))
    assert parts.vision[0, :8].tolist() == [20, 21, 22, 23, 24, 25, 26, 27]


def nearest_rows(wanted, rows):
    order = torch.cdist(wanted, rows).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(len(rows)))
    return order


def test_the_parts_of_an_image_token_lie_within_it(index):
    parts = finer(index, 3)
    apart = (parts.vision_centers.unflatten(1, (-1, 9)) - index.vision_centers[:, :, None]).abs()
    assert (apart <= index.vision_sizes[:, None, None] / 2)[index.vision_mask].all()


def test_one_part_is_the_image_token_itself(index):
    parts = finer(index, 1)
    assert torch.equal(parts.vision, index.vision)
    torch.testing.assert_close(parts.vision_centers, index.vision_centers)


def test_an_untaught_box_is_two_tokens_wide_and_high_and_around_its_token(index):
    boxes = of_tokens(index).sigmoid()[0]
    torch.testing.assert_close(boxes[:, :2], grid(2, 3))
    torch.testing.assert_close(boxes[:, 2:], torch.tensor([[2 / 3, 0.9]]).expand(6, 2))  # no wider than the picture


def test_the_best_are_those_of_the_highest_scores_and_never_padding():
    scores = torch.tensor([[0.1, 5.0, -3.0, 2.0], [1.0, 2.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert best(scores, mask, 2).tolist() == [[1, 3], [1, 0]]


def test_where_there_are_too_few_tokens_the_best_come_again():
    mask = torch.tensor([[True, True, False]])
    assert best(torch.tensor([[1.0, 2.0, 9.0]]), mask, 5).tolist() == [[1, 0, 1, 0, 1]]


def test_the_nearest_token_is_the_one_that_a_box_is_centred_in(index):
    boxes = torch.tensor([[[0.9, 0.1, 0.3, 0.3], [0.4, 0.8, 0.1, 0.1]], [[0.1, 0.55, 0.5, 0.5], [0.9, 0.99, 0.1, 0.1]]])
    assert nearest(boxes, index).tolist() == [[2, 4], [2, 3]]


@pytest.fixture
def gaze():
    torch.manual_seed(0)
    return Gaze(D_MODEL, NUM_HEADS)


def test_a_gaze_is_a_normal_density_around_a_place_of_the_box(gaze, index):
    torch.nn.init.normal_(gaze.say.weight, std=0.3)
    queries = torch.from_numpy(generator("queries").standard_normal((2, 3, D_MODEL), dtype="float32"))
    boxes = random_boxes(2, 3)
    bias = gaze(queries, boxes, index)
    said = gaze.say(queries).view(2, 3, NUM_HEADS, 5)
    for sample, query, head, token in [(0, 0, 0, 0), (0, 2, 3, 5), (1, 1, 2, 3)]:
        (ox, oy, *scales, text), (cx, cy, w, h) = said[sample, query, head], boxes[sample, query]
        w, h = torch.maximum(torch.stack([w, h]), index.vision_sizes[sample])
        middle, spread = torch.stack([cx + ox * w, cy + oy * h]), torch.stack(scales).exp() * torch.stack([w, h])
        density = Normal(middle, spread)
        expected = (density.log_prob(index.vision_centers[sample, token]) - density.log_prob(middle)).sum()
        torch.testing.assert_close(bias[sample, head, query, token], expected)
        torch.testing.assert_close(bias[sample, head, query, 6], text)


def test_a_gaze_does_not_see_padding_and_sees_all_else(gaze, index):
    bias = gaze(torch.zeros(2, 3, D_MODEL), random_boxes(2, 3), index)
    mask = torch.cat([index.vision_mask, index.text_mask], dim=1)
    assert torch.equal(bias.isfinite(), mask[:, None, None].expand_as(bias))


def test_untaught_every_head_looks_into_the_box_and_hardly_at_text(gaze, index):
    box = torch.tensor([1 / 6, 1 / 4, 1 / 3, 1 / 2])  # that of the first token
    looks = gaze(torch.zeros(2, 1, D_MODEL), box.expand(2, 1, 4), index)[0, :, 0].softmax(dim=-1)
    assert (looks.argmax(dim=-1) == 0).all()
    assert (looks[:, 6:] < 0.03).all()


def test_a_box_smaller_than_a_token_is_looked_at_as_one(gaze, index):
    """Or between two centres there would be nothing to see."""
    point = torch.tensor([1 / 3, 1 / 2, 1e-4, 1e-4]).expand(2, 1, 4)
    assert (gaze(torch.zeros(2, 1, D_MODEL), point, index)[0, :, 0, :6].amax(dim=-1) > -5).all()


def test_boxes_that_differ_by_a_patch_of_a_large_picture_have_waves_of_their_own():
    box = torch.tensor([0.5, 0.5, 0.1, 0.1])
    moved = box + torch.tensor([1 / 64, 0, 0, 0])
    assert (anchors.wave(box, 64) - anchors.wave(moved, 64)).norm() > 1
