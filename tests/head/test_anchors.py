"""Splitting image tokens, initial anchors and the choice of tokens, on small grids."""

import torch

from bbu_train.head.anchors import anchor_logits, box_sine_encoding, nearest_tokens, split_tokens, topk_tokens


def test_the_parts_of_image_tokens_are_the_tokens_of_a_finer_grid(index, grid):
    parts = split_tokens(index, 2)
    for sample, (height, width) in enumerate([(4, 6), (8, 2)]):
        centers, expected = parts.vision_centers[sample][parts.vision_mask[sample]], grid(height, width)
        torch.testing.assert_close(centers[nearest_rows(expected, centers)], expected)
        torch.testing.assert_close(parts.vision_sizes[sample], torch.tensor([1 / width, 1 / height]))
    assert parts.vision[0, :8].tolist() == [20, 21, 22, 23, 24, 25, 26, 27]


def nearest_rows(expected, rows):
    """The row nearest to each expected one; every row is the nearest of exactly one."""
    order = torch.cdist(expected, rows).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(len(rows)))
    return order


def test_the_parts_of_an_image_token_lie_within_it(index):
    parts = split_tokens(index, 3)
    offsets = (parts.vision_centers.unflatten(1, (-1, 9)) - index.vision_centers[:, :, None]).abs()
    assert (offsets <= index.vision_sizes[:, None, None] / 2)[index.vision_mask].all()


def test_one_part_is_the_image_token_itself(index):
    parts = split_tokens(index, 1)
    assert torch.equal(parts.vision, index.vision)
    torch.testing.assert_close(parts.vision_centers, index.vision_centers)


def test_an_initial_anchor_is_two_tokens_wide_and_high_around_its_token(index, grid):
    boxes = anchor_logits(index).sigmoid()[0]
    torch.testing.assert_close(boxes[:, :2], grid(2, 3))
    torch.testing.assert_close(boxes[:, 2:], torch.tensor([[2 / 3, 0.9]]).expand(6, 2))  # at most 0.9 of the picture


def test_the_top_tokens_have_the_highest_scores_and_are_never_padding():
    scores = torch.tensor([[0.1, 5.0, -3.0, 2.0], [1.0, 2.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert topk_tokens(scores, mask, 2).tolist() == [[1, 3], [1, 0]]


def test_a_picture_with_too_few_tokens_repeats_them_in_order():
    mask = torch.tensor([[True, True, False]])
    assert topk_tokens(torch.tensor([[1.0, 2.0, 9.0]]), mask, 5).tolist() == [[1, 0, 1, 0, 1]]


def test_the_nearest_token_is_the_one_that_contains_the_centre_of_the_box(index):
    boxes = torch.tensor([[[0.9, 0.1, 0.3, 0.3], [0.4, 0.8, 0.1, 0.1]], [[0.1, 0.55, 0.5, 0.5], [0.9, 0.99, 0.1, 0.1]]])
    assert nearest_tokens(boxes, index).tolist() == [[2, 4], [2, 3]]


def test_boxes_one_patch_apart_in_a_large_picture_have_different_encodings():
    box = torch.tensor([0.5, 0.5, 0.1, 0.1])
    moved = box + torch.tensor([1 / 64, 0, 0, 0])
    assert (box_sine_encoding(box, 64) - box_sine_encoding(moved, 64)).norm() > 1
