import pytest
import torch
from PIL import Image
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.conversation.patches import read_patches
from bbu_train.model.linear_patch_embedding import LinearPatchEmbedding


@pytest.fixture
def stock():
    torch.manual_seed(0)
    return Qwen2_5_VisionPatchEmbed(patch_size=14, temporal_patch_size=2, in_channels=3, embed_dim=32)


@pytest.fixture
def pictures(preprocessing, make_picture):
    """The raw patches of a picture, the same picture from transformers' processor, and that processor."""
    form = preprocessing.picture_format
    picture = make_picture("still", 123, 97)
    processor = Qwen2VLImageProcessorPil(min_pixels=form.min_pixels, max_pixels=form.max_pixels)
    return read_patches(picture, form), processor(images=Image.open(picture.path), return_tensors="pt"), processor


def linear(stock, processor):
    return LinearPatchEmbedding(stock.proj, list(processor.image_mean), list(processor.image_std))


def test_features_equal_those_of_the_stock_convolution_on_two_equal_frames(stock, pictures):
    patches, processed, processor = pictures
    torch.testing.assert_close(
        linear(stock, processor)(patches), stock(processed["pixel_values"]), atol=2e-5, rtol=1e-5
    )


def test_the_gradient_of_the_weight_equals_that_of_the_stock_convolution(stock, pictures):
    patches, processed, processor = pictures
    upstream = torch.randn(len(patches), 32, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((stock(processed["pixel_values"]) * upstream).sum(), stock.proj.weight)
    (gradient,) = torch.autograd.grad((linear(stock, processor)(patches) * upstream).sum(), stock.proj.weight)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_the_state_dict_has_only_the_weight_under_its_stock_name(stock, pictures):
    assert list(linear(stock, pictures[2]).state_dict()) == list(stock.state_dict()) == ["proj.weight"]


def test_half_precision_weights_give_half_precision_features(stock, pictures):
    patches, processed, processor = pictures
    expected = stock(processed["pixel_values"])
    features = linear(stock, processor).bfloat16()(patches)
    assert features.dtype == torch.bfloat16
    assert (features - expected).abs().max() < 0.05 * expected.abs().max()
