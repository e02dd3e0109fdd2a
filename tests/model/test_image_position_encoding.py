"""The encoding of rows and columns that is added to image tokens."""

import math

import pytest
import torch

from bbu_train.conversation.mrope_positions import positions
from bbu_train.errors import InputError
from bbu_train.model.image_position_encoding import check_scale, image_position_encoding

WIDTH = 24


def encode(row, column):
    """Return the encoding by its definition, number by number."""
    frequencies = [64 ** (-4 * i / WIDTH) for i in range(WIDTH // 4)]
    return [f(axis * frequency) for axis in (row, column) for f in (math.sin, math.cos) for frequency in frequencies]


@pytest.mark.parametrize("before", [1, 7])
def test_the_encoding_depends_on_row_and_column_in_the_picture_and_not_on_what_comes_before(before):
    ids = positions([before, (3, 2), 5, (2, 4)])
    first, second = ids[:, before : before + 6], ids[:, before + 11 :]
    expected = [encode(i, j) for i in range(3) for j in range(2)] + [encode(i, j) for i in range(2) for j in range(4)]
    encoding = image_position_encoding(torch.cat([first, second], dim=1), WIDTH)
    torch.testing.assert_close(encoding, torch.tensor(expected), rtol=0, atol=1e-5)


def test_no_two_tokens_of_the_largest_picture_have_similar_encodings():
    encoding = image_position_encoding(positions([(64, 64)]), 128)
    smallest_distance = torch.cdist(encoding, encoding).fill_diagonal_(math.inf).min()
    assert smallest_distance > 0.5


def embeddings_and_features(model, batch):
    """Return the input embeddings of the language model and the features from the vision tower."""
    embeddings = []
    hook = model.backbone.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: embeddings.append(kwargs["inputs_embeds"].flatten(0, 1)), with_kwargs=True
    )
    with torch.no_grad():
        features = model.encode_images(batch)
        model.hidden_states(batch, features)
    hook.remove()
    return embeddings[0], features


def test_the_encoding_is_added_to_image_tokens_only(make_model, collate, encoded):
    batch = collate("packed", encoded)
    without, _ = embeddings_and_features(make_model("head=none"), batch)
    embeddings, features = embeddings_and_features(make_model("head=none", "model.image_position_scale=0.5"), batch)
    position_ids = batch.position_ids[1:].flatten(1)[:, batch.image_positions]
    expected_features = features + 0.5 * image_position_encoding(position_ids, features.shape[1])
    expected = without.index_copy(0, batch.image_positions, expected_features)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=0)
    assert not torch.equal(embeddings, without)


@pytest.mark.parametrize("scale", [-1, True, math.inf, math.nan])
def test_a_scale_that_is_not_a_number_from_0_on_is_refused(scale):
    with pytest.raises(InputError, match=r"model.image_position_scale=.*expected a number, 0 \(none\) or above"):
        check_scale(scale, "random")


def test_a_model_is_not_built_with_an_impossible_scale(make_model):
    with pytest.raises(InputError, match=r"model.image_position_scale=-1"):
        make_model("model.image_position_scale=-1")


def test_a_scale_above_0_is_refused_with_pretrained_weights():
    with pytest.raises(
        InputError, match=r"image_position_scale=1 with model.weights=pretrained: .*image_position_scale=0"
    ):
        check_scale(1, "pretrained")
    check_scale(0, "pretrained")
