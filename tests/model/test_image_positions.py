"""Where image tokens lie, as it is told to the language model."""

import math

import pytest
import torch

from bbu_train.conversation.positions import positions
from bbu_train.errors import InputError
from bbu_train.model import image_positions

WIDTH = 24


def place(row, column):
    """The definition, a number at a time."""
    rates = [64 ** (-4 * i / WIDTH) for i in range(WIDTH // 4)]
    return [function(where * rate) for where in (row, column) for function in (math.sin, math.cos) for rate in rates]


@pytest.mark.parametrize("before", [1, 7])
def test_a_place_is_a_row_and_a_column_of_the_picture_whatever_comes_before_it(before):
    ids = positions([before, (3, 2), 5, (2, 4)])
    first, second = ids[:, before : before + 6], ids[:, before + 11 :]
    expected = [place(i, j) for i in range(3) for j in range(2)] + [place(i, j) for i in range(2) for j in range(4)]
    ours = image_positions.sines(torch.cat([first, second], dim=1), WIDTH)
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=0, atol=1e-5)


def test_no_two_tokens_of_the_largest_picture_have_the_same_place():
    ours = image_positions.sines(positions([(64, 64)]), 128)
    nearest = torch.cdist(ours, ours).fill_diagonal_(math.inf).min()
    assert nearest > 0.5


def features_read(model, batch):
    """What the language model is given in place of image tokens, and what the vision tower made."""
    given = []
    hook = model.backbone.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["inputs_embeds"].flatten(0, 1)), with_kwargs=True
    )
    with torch.no_grad():
        seen = model.encode_images(batch)
        model.hidden_states(batch, seen)
    hook.remove()
    return given[0], seen


def test_they_are_added_to_image_tokens_and_to_nothing_else(make_model, collate, encoded):
    batch = collate("packed", encoded)
    without, _ = features_read(make_model("head=none"), batch)
    placed, seen = features_read(make_model("head=none", "model.image_position_scale=0.5"), batch)
    ids = batch.position_ids[1:].flatten(1)[:, batch.image_positions]
    expected = without.index_copy(0, batch.image_positions, seen + 0.5 * image_positions.sines(ids, seen.shape[1]))
    torch.testing.assert_close(placed, expected, rtol=0, atol=0)
    assert not torch.equal(placed, without)


@pytest.mark.parametrize("amplitude", ["-1", "true", "inf", "nan"])
def test_an_amplitude_is_a_number_from_0_on(make_model, amplitude):
    with pytest.raises(InputError, match=r"model.image_position_scale=.*expected a number, 0 \(none\) or above"):
        make_model(f"model.image_position_scale={amplitude}")


def test_pretrained_weights_have_not_learned_with_them():
    with pytest.raises(
        InputError, match=r"image_position_scale=1 with model.weights=pretrained: .*image_position_scale=0"
    ):
        image_positions.check(1, "pretrained")
    image_positions.check(0, "pretrained")
