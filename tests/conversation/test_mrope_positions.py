import pytest
import torch
from omegaconf import OmegaConf
from transformers import Qwen2_5_VLModel

from bbu_train.conversation.mrope_positions import positions
from bbu_train.model.shape import configuration

IMAGE = 7  # any id: get_rope_index only uses the types of tokens


@pytest.fixture(scope="module")
def stock(config):
    shape = OmegaConf.to_container(config().model.shape, resolve=True)
    with torch.device("meta"):
        return Qwen2_5_VLModel(configuration(None, "random", shape))


def stock_positions(stock, spans):
    types = [kind for span in spans for kind in ([0] * span if isinstance(span, int) else [1] * (span[0] * span[1]))]
    grids = [[1, 2 * span[0], 2 * span[1]] for span in spans if not isinstance(span, int)]
    position_ids, _ = stock.get_rope_index(
        torch.full((1, len(types)), IMAGE),
        mm_token_type_ids=torch.tensor([types], dtype=torch.int32),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    return position_ids[:, 0]


@pytest.mark.parametrize(
    "spans",
    [
        [9],
        [5, (1, 1), 3],
        [5, (2, 3), 4],
        [5, (6, 2), 4],
        [1, (17, 23), 30, (23, 17), 1],
        [12, (2, 2), 40, (3, 5), 8, 2, (5, 3), 60, (1, 9), 7],
    ],
)
def test_positions_are_those_of_the_stock_model(stock, spans):
    assert torch.equal(positions(spans), stock_positions(stock, spans))


def test_encoded_conversations_have_the_positions_of_the_stock_model(stock, builder, encoded):
    for sample in encoded:
        is_image = sample.input_ids == builder.tokenizer.image
        position_ids, _ = stock.get_rope_index(
            sample.input_ids[None], mm_token_type_ids=is_image[None].int(), image_grid_thw=sample.grid_thw
        )
        assert torch.equal(sample.position_ids, position_ids[:, 0])
