"""Where queries begin, on small grids of image tokens."""

import torch

from bbu_train.head import anchors
from bbu_train.head.anchors import best, finer, nearest, of_tokens


def test_the_parts_of_image_tokens_are_the_tokens_of_a_finer_grid(index, grid):
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


def test_an_untaught_box_is_two_tokens_wide_and_high_and_around_its_token(index, grid):
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


def test_boxes_that_differ_by_a_patch_of_a_large_picture_have_waves_of_their_own():
    box = torch.tensor([0.5, 0.5, 0.1, 0.1])
    moved = box + torch.tensor([1 / 64, 0, 0, 0])
    assert (anchors.wave(box, 64) - anchors.wave(moved, 64)).norm() > 1
