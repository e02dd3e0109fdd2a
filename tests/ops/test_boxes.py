import pytest
import torch
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.loss.loss_for_object_detection import box_iou, generalized_box_iou

from bbu_train.ops import boxes
from bbu_train.runtime.seeds import generator


def random_xyxy(name, num, width=1.0, height=1.0):
    x1, x2 = generator(name, "x").uniform(0, width, (2, num))
    y1, y2 = generator(name, "y").uniform(0, height, (2, num))
    corners = [torch.tensor(list(map(pick, a, b))) for pick in (min, max) for a, b in ((x1, x2), (y1, y2))]
    return torch.stack(corners, dim=-1).float()


A, B = random_xyxy("a", 50), random_xyxy("b", 40)


def test_conversions_equal_those_of_transformers():
    torch.testing.assert_close(boxes.xyxy_to_cxcywh(A), corners_to_center_format(A))
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(A), center_to_corners_format(A))


def test_any_leading_shape_is_kept():
    shaped = A.reshape(5, 2, 5, 4)
    torch.testing.assert_close(boxes.xyxy_to_cxcywh(shaped).reshape(-1, 4), boxes.xyxy_to_cxcywh(A))
    assert boxes.xyxy_to_cxcywh(A[0]).shape == (4,)
    assert boxes.cxcywh_to_xyxy(A[:0]).shape == (0, 4)


def test_iou_equals_that_of_transformers():
    torch.testing.assert_close(boxes.iou(A, B), box_iou(A, B)[0])


def test_generalized_iou_of_positive_areas_equals_that_of_transformers():
    torch.testing.assert_close(boxes.paired_generalized_iou(A[:, None], B[None]), generalized_box_iou(A, B))


def test_paired_iou_is_the_diagonal_of_iou():
    torch.testing.assert_close(boxes.paired_iou(A[:40], B), boxes.iou(A[:40], B).diagonal())


def test_generalized_iou_reaches_both_ends_of_its_range():
    top_left, bottom_right = torch.tensor([[0.0, 0.0, 1e-3, 1e-3]]), torch.tensor([[1 - 1e-3, 1 - 1e-3, 1.0, 1.0]])
    assert boxes.paired_generalized_iou(A, A).min() > 1 - 1e-5
    assert -1 <= boxes.paired_generalized_iou(top_left, bottom_right) < -0.99


def test_an_inverted_box_has_no_area():
    assert boxes.area(torch.tensor([[3.0, 0.0, 1.0, 2.0], [3.0, 2.0, 1.0, 0.0]])).tolist() == [0, 0]


@pytest.mark.parametrize("other", [[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0], [0.2, 0.2, 0.8, 0.8]])
def test_zero_area_boxes_give_iou_zero_and_finite_gradients(other):
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    box = torch.tensor([other], requires_grad=True)
    assert boxes.iou(point, box).item() == 0
    value = boxes.paired_generalized_iou(point, box)
    value.sum().backward()
    assert -1 <= value.item() <= 0
    assert point.grad.isfinite().all()
    assert box.grad.isfinite().all()


def test_normalised_boxes_come_back_within_half_a_pixel():
    for i, (width, height) in enumerate(generator("sizes").integers(28, 12_000, (50, 2)).tolist()):
        pixels = random_xyxy(f"trip {i}", 100, width, height)
        normalised = boxes.scale(boxes.xyxy_to_cxcywh(pixels), 1 / width, 1 / height)
        back = boxes.scale(boxes.cxcywh_to_xyxy(normalised), width, height)
        assert normalised.min() >= 0
        assert normalised.max() <= 1
        assert (back - pixels).abs().max() < 0.5
