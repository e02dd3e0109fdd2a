"""The language loss equals that of the stock transformers model, which reads the same samples with its own code."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.images.files import open_upright
from bbu_train.types.samples import Role

LAYOUTS = ("packed", "standard")


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("head=none")


@pytest.fixture(scope="session")
def image_token(preprocessing):
    return preprocessing.tokenizer.convert_tokens_to_ids("<|image_pad|>")


@pytest.fixture(scope="module")
def stock(model, config, image_token):
    """transformers' model with the same weights, and its own patch embedding, positions and attention."""
    shape = OmegaConf.to_container(config().model.shape, resolve=True)
    stock = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**shape, image_token_id=image_token))
    stock.load_state_dict(model.backbone.state_dict())
    return stock


@pytest.fixture(scope="session")
def stock_inputs(samples, encoded, preprocessing, image_token):
    """A function from indices of samples to the stock model's inputs; transformers' processor makes the pixels."""
    picture_format = preprocessing.picture_format
    processor = Qwen2VLImageProcessorPil(min_pixels=picture_format.min_pixels, max_pixels=picture_format.max_pixels)

    def make(indices):
        chosen = [encoded[i] for i in indices]
        ids = pad_sequence([sample.input_ids for sample in chosen], batch_first=True)
        labels = [sample.input_ids.masked_fill(sample.roles == Role.NONE, -100) for sample in chosen]
        pictures = [picture for i in indices for picture in (*samples[i].teachers, samples[i].student)]
        pixels = processor([open_upright(picture.path) for picture in pictures], return_tensors="pt")
        return {
            "input_ids": ids,
            "attention_mask": pad_sequence([torch.ones_like(sample.input_ids) for sample in chosen], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "mm_token_type_ids": (ids == image_token).int(),
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": pixels["image_grid_thw"],
        }

    return make


@pytest.fixture(scope="module")
def stock_loss(stock, stock_inputs):
    """A function from indices of samples to the stock model's loss."""
    return cache(lambda indices: stock(**stock_inputs(indices)).loss)


def mean_over_tokens(model, criterion, batch):
    """(n_t teacher + n_s student) / (n_t + n_s), the mean over all supervised tokens."""
    counts, means = batch.counts, criterion.means(criterion(model(batch), batch), batch.counts)
    total = counts.teacher_tokens * means.get("teacher_lm", 0) + counts.student_tokens * means["student_lm"]
    return total / (counts.teacher_tokens + counts.student_tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("indices", [(0,), (1,), (2,), (0, 1, 2, 3)])
def test_the_language_loss_is_that_of_the_stock_model(
    layout, indices, model, stock_loss, make_criterion, collate, encoded
):
    batch = collate(layout, [encoded[i] for i in indices])
    loss = mean_over_tokens(model, make_criterion("loss=language"), batch)
    torch.testing.assert_close(loss, stock_loss(indices), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradients_are_those_of_the_stock_model(layout, model, stock, stock_loss, make_criterion, collate, encoded):
    loss = mean_over_tokens(model, make_criterion("loss=language"), collate(layout, encoded))
    expected = gradients_of(stock_loss((0, 1, 2, 3)), stock)
    torch.testing.assert_close(gradients_of(loss, model.backbone), expected, atol=1e-5, rtol=1e-4)


def gradients_of(loss, module):
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True))


def test_the_student_loss_does_not_depend_on_teacher_labels(model, make_criterion, collate, encoded):
    batch, criterion = collate("packed", encoded), make_criterion("loss=language")
    outputs = model(batch)
    without_teachers = [replace(s, roles=s.roles.masked_fill(s.roles == Role.TEACHER, Role.NONE)) for s in encoded]
    alone = collate("packed", without_teachers)
    expected = criterion(outputs, batch)["student_lm"]
    assert alone.counts.teacher_tokens == 0
    torch.testing.assert_close(criterion(model(alone), alone)["student_lm"], expected)


def test_each_weight_multiplies_its_own_mean(model, make_criterion, collate, encoded):
    batch = collate("packed", encoded)
    criterion = make_criterion("loss=language", "loss.weights.teacher=3", "loss.weights.student=0.5")
    losses = criterion(model(batch), batch)
    means = criterion.means(losses, batch.counts)
    expected = 3 * means["teacher_lm"] + 0.5 * means["student_lm"]
    torch.testing.assert_close(criterion.objective(losses, batch.counts), expected)
